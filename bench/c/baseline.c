/*
 * baseline.c: a switch target in plain C, to measure blkswitch-core beside.
 *
 * It is written from the documented behaviour of the target alone (docs/switch.md), as an engineer
 * would write it: entries of exactly as many bits as the paths need, packed into 64-bit words, a
 * shift in place of a division wherever a size is a power of two (decided when the table is made),
 * digits by a table, words split in place first. bench/src/beside_c.rs calls it in the process that
 * also runs blkswitch-core, and compares the maps that both make.
 *
 * Every function returns 0 for success and a negative number otherwise, unless it says more.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NO_SHIFT (-1)

struct target {
	uint64_t *slots;
	uint64_t regions;
	uint64_t mask;
	uint32_t paths;
	uint32_t region_size;
	int region_shift;    /* log2 of the region size, or NO_SHIFT */
	unsigned bits;       /* bits of an entry */
	unsigned per_slot;   /* entries in a slot */
	int per_slot_shift;  /* log2 of per_slot, or NO_SHIFT */
};

/* A text or a list of sectors that the caller owns. */
struct bytes {
	const char *at;
	size_t len;
};

struct sectors {
	const uint64_t *at;
	size_t len;
};

/* Split words, and the buffer that has them. */
struct words {
	char *buffer;
	char **word;
	size_t count;
};

static int shift_of(uint64_t number)
{
	return number & (number - 1) ? NO_SHIFT : __builtin_ctzll(number);
}

/* The place of a region's entry. */
static inline void place(const struct target *t, uint64_t region, uint64_t *slot, unsigned *bit)
{
	if (t->per_slot_shift != NO_SHIFT) {
		*slot = region >> t->per_slot_shift;
		*bit = (region & (t->per_slot - 1)) * t->bits;
	} else {
		*slot = region / t->per_slot;
		*bit = (region - *slot * t->per_slot) * t->bits;
	}
}

static inline uint32_t get(const struct target *t, uint64_t region)
{
	uint64_t slot;
	unsigned bit;

	place(t, region, &slot, &bit);
	return (__atomic_load_n(&t->slots[slot], __ATOMIC_RELAXED) >> bit) & t->mask;
}

static inline void set(struct target *t, uint64_t region, uint64_t path)
{
	uint64_t slot, word;
	unsigned bit;

	place(t, region, &slot, &bit);
	word = __atomic_load_n(&t->slots[slot], __ATOMIC_RELAXED);
	word = (word & ~(t->mask << bit)) | path << bit;
	__atomic_store_n(&t->slots[slot], word, __ATOMIC_RELAXED);
}

void baseline_free(struct target *t)
{
	if (t)
		free(t->slots);
	free(t);
}

struct target *baseline_new(uint64_t regions, uint32_t paths, uint32_t region_size)
{
	struct target *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->regions = regions;
	t->paths = paths;
	t->region_size = region_size;
	t->region_shift = shift_of(region_size);
	t->bits = 1;
	while (t->bits < 32 && (1ull << t->bits) < paths)
		t->bits++;
	t->mask = (1ull << t->bits) - 1;
	t->per_slot = 64 / t->bits;
	t->per_slot_shift = shift_of(t->per_slot);
	t->slots = calloc(regions / t->per_slot + 1, sizeof(*t->slots));
	if (!t->slots) {
		baseline_free(t);
		return NULL;
	}
	for (uint64_t region = 0; region < regions; region++)
		set(t, region, region % paths);
	return t;
}

/* Returns the path of a region. The caller guarantees that the region exists. */
uint32_t baseline_path(const struct target *t, uint64_t region)
{
	return get(t, region);
}

/* Returns the path of a sector, and how many sectors are left in its region from there on. */
static inline uint32_t route(const struct target *t, uint64_t sector, uint64_t *left)
{
	uint64_t region, into;

	if (t->region_shift != NO_SHIFT) {
		region = sector >> t->region_shift;
		into = sector & (t->region_size - 1);
	} else {
		region = sector / t->region_size;
		into = sector - region * t->region_size;
	}
	*left = t->region_size - into;
	return get(t, region);
}

/* Routes independent sectors. Returns the sum of all answers, so that none can be left out. */
uint64_t baseline_batch(const struct target *t, const struct sectors *sectors)
{
	uint64_t sum = 0, left;

	for (size_t i = 0; i < sectors->len; i++) {
		sum += route(t, sectors->at[i], &left);
		sum += left;
	}
	return sum;
}

/* As above, but each sector depends on the route before it. */
uint64_t baseline_chain(const struct target *t, const struct sectors *sectors)
{
	uint64_t before = 0, left;

	for (size_t i = 0; i < sectors->len; i++)
		before = route(t, sectors->at[i] ^ before, &left) >> 31;
	return before;
}

static const signed char DIGITS[256] = {
	['0'] = 1, ['1'] = 2, ['2'] = 3, ['3'] = 4, ['4'] = 5, ['5'] = 6, ['6'] = 7, ['7'] = 8,
	['8'] = 9, ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
	['A'] = 11, ['B'] = 12, ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16,
};

/* Reads a number. No digits are an error. */
static inline int number(const char **at, uint64_t *value)
{
	const char *s = *at;
	int digit;

	*value = 0;
	while ((digit = DIGITS[(unsigned char)*s]) != 0) {
		*value = *value << 4 | (uint64_t)(digit - 1);
		s++;
	}
	if (s == *at)
		return -1;
	*at = s;
	return 0;
}

/* Applies R<cycle>,<count>. */
static int repeat(struct target *t, const char *s, uint64_t *index)
{
	uint64_t cycle, count;

	if (number(&s, &cycle) || *s++ != ',' || number(&s, &count) || *s)
		return -1;
	if (cycle - 1 > *index)
		return -1;
	if (*index + count < count || *index + count >= t->regions)
		return -1;
	for (uint64_t i = 0; i < count; i++) {
		++*index;
		set(t, *index, get(t, *index - cycle));
	}
	return 0;
}

static inline int argument(struct target *t, const char *s, uint64_t *index)
{
	uint64_t path;

	if (*s == 'R' || *s == 'r')
		return repeat(t, s + 1, index);
	if (*s == ':')
		++*index;
	else if (number(&s, index))
		return -1;
	if (*s++ != ':' || number(&s, &path) || *s)
		return -1;
	if (*index >= t->regions || path >= t->paths)
		return -1;
	set(t, *index, path);
	return 0;
}

/* Applies the arguments of a message that was split. */
int baseline_apply(struct target *t, const struct words *words)
{
	uint64_t index = 0;

	for (size_t i = 0; i < words->count; i++)
		if (argument(t, words->word[i], &index))
			return -1;
	return 0;
}

void baseline_words_free(struct words *words)
{
	if (words) {
		free(words->buffer);
		free(words->word);
	}
	free(words);
}

/* Copies a message's text; does not split it. */
struct words *baseline_words_new(const struct bytes *text)
{
	struct words *words = calloc(1, sizeof(*words));

	if (!words)
		return NULL;
	words->buffer = malloc(text->len + 1);
	words->word = malloc((text->len / 2 + 1) * sizeof(*words->word));
	if (!words->buffer || !words->word) {
		baseline_words_free(words);
		return NULL;
	}
	memcpy(words->buffer, text->at, text->len);
	words->buffer[text->len] = 0;
	memset(words->word, 0, (text->len / 2 + 1) * sizeof(*words->word));
	return words;
}

/*
 * Splits the text in place: white space ends a word, and a backslash makes the next character
 * literal.
 */
int baseline_split(struct words *words)
{
	char *in = words->buffer, *out = in;

	for (;;) {
		while (*in == ' ' || (*in >= '\t' && *in <= '\r'))
			in++;
		if (!*in)
			return 0;
		out = in;
		words->word[words->count++] = out;
		while (*in && *in != ' ' && !(*in >= '\t' && *in <= '\r')) {
			if (*in == '\\' && in[1])
				in++;
			*out++ = *in++;
		}
		if (*in)
			in++;
		*out = 0;
	}
}
