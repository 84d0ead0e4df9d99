// SPDX-License-Identifier: GPL-2.0
/*
 * The device-mapper side of the switch target: the parts of a kernel that only C can use (macros, inlines,
 * module parameters). The Rust object decides, parses and looks up. Its functions are named blkswitch_*; the
 * functions that it calls back are named glue_*, and src/glue.rs declares them.
 */
#include <linux/blk_types.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/init.h>
#include <linux/jump_label.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/vmalloc.h>

#define DM_MSG_PREFIX "switch"

/* Size of the Rust side's state in 64-bit words; src/target.rs does not compile if the state is larger. */
#define BLKSWITCH_STATE_WORDS 16

/* Requests and sectors of a path, by kind of request. */
struct glue_count {
	struct {
		u64 ios;
		u64 sectors;
	} of[NR_STAT_GROUPS];
};

/* A path. Every request reads one; the fields that it needs share half a cache line. */
struct glue_path {
	struct block_device *bdev;
	/* Added to a sector of the mapped device to get the sector of the path. */
	sector_t shift;
	struct glue_count __percpu *count;
	struct dm_dev *dev;
};

struct glue_target {
	u64 state[BLKSWITCH_STATE_WORDS];
	void *table;
	struct glue_count __percpu *counts;
	struct mutex message_lock;
	u32 num_paths;
	struct glue_path paths[];
};

/* Functions of the Rust object. */
int blkswitch_name_is_valid(const char *name);
int blkswitch_ctr(struct dm_target *ti, unsigned int argc, char **argv, sector_t len, bool strict);
unsigned long blkswitch_route(const u64 *state, sector_t sector);
u32 blkswitch_extent(const u64 *state, sector_t sector, u32 sectors);
int blkswitch_message(u64 *state, struct glue_target *gt, unsigned int argc, char **argv, char *result,
		      unsigned int maxlen);
u32 blkswitch_region_size(const u64 *state);
int blkswitch_passes_ioctl(const u64 *state, sector_t start, sector_t dev_size);

/* Functions that the Rust object calls; modpost needs their declarations. */
struct glue_target *glue_alloc(struct dm_target *ti, u32 num_paths, bool counted);
int glue_open(struct dm_target *ti, u32 path, const char *device);
void glue_set_start(struct dm_target *ti, u32 path, sector_t start);
sector_t glue_dev_size(const struct dm_target *ti, u32 path);
u32 glue_dev_block_size(const struct dm_target *ti, u32 path);
void *glue_alloc_table(struct dm_target *ti, size_t size);
void glue_set_limits(struct dm_target *ti, u32 region_size, u32 flush_bios, u32 discard_bios,
		     u32 write_zeroes_bios);
void glue_set_error(struct dm_target *ti, char *text);
void glue_free(struct dm_target *ti);
void glue_warn(const char *head, const char *middle, const char *tail);
u64 glue_count(const struct glue_target *gt, u32 path, u32 group, bool sectors);
bool glue_is_counting(void);
bool glue_go_on(void);

static char *name = "switch";
module_param(name, charp, 0444);
MODULE_PARM_DESC(name, "name of the target in table lines (switch)");

static bool strict;
module_param(strict, bool, 0644);
MODULE_PARM_DESC(strict, "tables loaded from now on do exactly what the kernel's own switch target does (N)");

/* A static key patches the counting in and out, so that requests pay nothing while it is off. */
static DEFINE_STATIC_KEY_FALSE(glue_counting);

static int glue_set_counters(const char *value, const struct kernel_param *param)
{
	bool on;
	int ret = kstrtobool(value, &on);

	if (ret)
		return ret;
	if (on)
		static_branch_enable(&glue_counting);
	else
		static_branch_disable(&glue_counting);
	return 0;
}

static int glue_get_counters(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%c\n", static_key_enabled(&glue_counting) ? 'Y' : 'N');
}

static const struct kernel_param_ops glue_counters_ops = {
	.set = glue_set_counters,
	.get = glue_get_counters,
};
module_param_cb(counters, &glue_counters_ops, NULL, 0644);
MODULE_PARM_DESC(counters, "count the requests and sectors of every path, see get_path_counters (N)");

bool glue_is_counting(void)
{
	return static_key_enabled(&glue_counting);
}

/* Called between two turns of a long message. */
bool glue_go_on(void)
{
	cond_resched();
	return !fatal_signal_pending(current);
}

struct glue_target *glue_alloc(struct dm_target *ti, u32 num_paths, bool counted)
{
	struct glue_target *gt = kvzalloc(struct_size(gt, paths, num_paths), GFP_KERNEL);
	u32 path;

	if (!gt)
		return NULL;
	/* Without counters, all paths share one set, so that no request has to check. */
	gt->counts = __alloc_percpu(array_size(counted ? num_paths : 1, sizeof(struct glue_count)),
				    __alignof__(struct glue_count));
	if (!gt->counts) {
		kvfree(gt);
		return NULL;
	}
	for (path = 0; path < num_paths; path++)
		gt->paths[path].count = gt->counts + (counted ? path : 0);
	mutex_init(&gt->message_lock);
	gt->num_paths = num_paths;
	ti->private = gt;
	return gt;
}

int glue_open(struct dm_target *ti, u32 path, const char *device)
{
	struct glue_target *gt = ti->private;

	int ret = dm_get_device(ti, device, dm_table_get_mode(ti->table), &gt->paths[path].dev);

	if (!ret)
		gt->paths[path].bdev = gt->paths[path].dev->bdev;
	return ret;
}

void glue_set_start(struct dm_target *ti, u32 path, sector_t start)
{
	struct glue_target *gt = ti->private;

	gt->paths[path].shift = start - ti->begin;
}

static sector_t glue_start(const struct dm_target *ti, const struct glue_path *path)
{
	return path->shift + ti->begin;
}

sector_t glue_dev_size(const struct dm_target *ti, u32 path)
{
	const struct glue_target *gt = ti->private;

	return bdev_nr_sectors(gt->paths[path].bdev);
}

u32 glue_dev_block_size(const struct dm_target *ti, u32 path)
{
	const struct glue_target *gt = ti->private;

	return bdev_logical_block_size(gt->paths[path].bdev);
}

/* Returns zeroed memory. */
void *glue_alloc_table(struct dm_target *ti, size_t size)
{
	struct glue_target *gt = ti->private;
	gfp_t gfp = GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN;

	/* kvmalloc() refuses more than INT_MAX bytes with a warning. */
	gt->table = size <= INT_MAX ? kvmalloc(size, gfp) : __vmalloc(size, gfp);
	return gt->table;
}

void glue_set_limits(struct dm_target *ti, u32 region_size, u32 flush_bios, u32 discard_bios,
		     u32 write_zeroes_bios)
{
	ti->max_io_len = region_size;
	ti->num_flush_bios = flush_bios;
	ti->num_discard_bios = discard_bios;
	ti->num_secure_erase_bios = write_zeroes_bios;
	ti->num_write_zeroes_bios = write_zeroes_bios;
}

void glue_set_error(struct dm_target *ti, char *text)
{
	ti->error = text;
}

void glue_free(struct dm_target *ti)
{
	struct glue_target *gt = ti->private;
	u32 path;

	for (path = 0; path < gt->num_paths; path++)
		if (gt->paths[path].dev)
			dm_put_device(ti, gt->paths[path].dev);
	kvfree(gt->table);
	free_percpu(gt->counts);
	mutex_destroy(&gt->message_lock);
	kvfree(gt);
}

void glue_warn(const char *head, const char *middle, const char *tail)
{
	DMWARN("%s%s%s", head, middle, tail);
}

u64 glue_count(const struct glue_target *gt, u32 path, u32 group, bool sectors)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct glue_count *count = per_cpu_ptr(gt->counts, cpu) + path;

		sum += READ_ONCE(*(sectors ? &count->of[group].sectors : &count->of[group].ios));
	}
	return sum;
}

static int glue_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	return blkswitch_ctr(ti, argc, argv, ti->len, READ_ONCE(strict));
}

static __always_inline int glue_send(struct bio *bio, const struct glue_path *path, u32 group)
{
	if (static_branch_unlikely(&glue_counting)) {
		this_cpu_inc(path->count->of[group].ios);
		this_cpu_add(path->count->of[group].sectors, bio_sectors(bio));
	}
	bio_set_dev(bio, path->bdev);
	bio->bi_iter.bi_sector += path->shift;
	return DM_MAPIO_REMAPPED;
}

/* glue_set_limits() has asked for a flush per path. Other requests are cut to an extent of one path. */
static noinline int glue_map_special(struct dm_target *ti, struct bio *bio)
{
	const struct glue_target *gt = ti->private;
	sector_t sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	const struct glue_path *path;
	u32 sectors;

	if (bio->bi_opf & REQ_PREFLUSH) {
		/* A flush has no sector; the value is not used. */
		path = &gt->paths[dm_bio_get_target_bio_nr(bio)];
		return glue_send(bio, path, STAT_FLUSH);
	}
	sectors = blkswitch_extent(gt->state, sector, bio_sectors(bio));
	if (sectors < bio_sectors(bio))
		dm_accept_partial_bio(bio, sectors);
	path = &gt->paths[blkswitch_route(gt->state, sector)];
	return glue_send(bio, path, op_stat_group(bio_op(bio)));
}

static int glue_map(struct dm_target *ti, struct bio *bio)
{
	const struct glue_target *gt = ti->private;
	const struct glue_path *path;

	/* One test for all requests that are neither reads nor writes. */
	if (unlikely(bio->bi_opf & (REQ_PREFLUSH | (REQ_OP_MASK & ~REQ_OP_WRITE))))
		return glue_map_special(ti, bio);
	path = &gt->paths[blkswitch_route(gt->state, dm_target_offset(ti, bio->bi_iter.bi_sector))];
	/* Keeps gcc from computing the address at each use. */
	OPTIMIZER_HIDE_VAR(path);
	return glue_send(bio, path, bio_data_dir(bio));
}

static int glue_message(struct dm_target *ti, unsigned int argc, char **argv, char *result, unsigned int maxlen)
{
	struct glue_target *gt = ti->private;
	int ret;

	/* An earlier message may run for long, so the wait can be interrupted. */
	if (mutex_lock_killable(&gt->message_lock))
		return -EINTR;
	ret = blkswitch_message(gt->state, gt, argc, argv, result, maxlen);
	mutex_unlock(&gt->message_lock);
	return ret;
}

static void glue_status(struct dm_target *ti, status_type_t type, unsigned int status_flags, char *result,
			unsigned int maxlen)
{
	const struct glue_target *gt = ti->private;
	unsigned int sz = 0;
	u32 path;

	result[0] = '\0';
	if (type != STATUSTYPE_TABLE)
		return;
	DMEMIT("%u %u 0", gt->num_paths, blkswitch_region_size(gt->state));
	for (path = 0; path < gt->num_paths; path++)
		DMEMIT(" %s %llu", gt->paths[path].dev->name, (unsigned long long)glue_start(ti, &gt->paths[path]));
}

static int glue_prepare_ioctl(struct dm_target *ti, struct block_device **bdev)
{
	const struct glue_target *gt = ti->private;
	const struct glue_path *path = &gt->paths[blkswitch_route(gt->state, 0)];

	*bdev = path->bdev;
	return !blkswitch_passes_ioctl(gt->state, glue_start(ti, path), bdev_nr_sectors(*bdev));
}

/* Newer kernels pass the ioctl, and the target can report that it has answered it. */
static int __maybe_unused glue_prepare_known_ioctl(struct dm_target *ti, struct block_device **bdev, unsigned int cmd,
				    unsigned long arg, bool *forward)
{
	return glue_prepare_ioctl(ti, bdev);
}

/* The kernel's headers decide between the two forms. */
#define GLUE_PREPARE_IOCTL                                                              \
	_Generic((dm_prepare_ioctl_fn)NULL,                                             \
		 int (*)(struct dm_target *, struct block_device **): glue_prepare_ioctl, \
		 default: glue_prepare_known_ioctl)

static int glue_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	const struct glue_target *gt = ti->private;
	u32 path;
	int ret = 0;

	for (path = 0; path < gt->num_paths && !ret; path++)
		ret = fn(ti, gt->paths[path].dev, glue_start(ti, &gt->paths[path]), ti->len, data);
	return ret;
}

/* The name is set when the module is loaded. */
static struct target_type glue_target_type = {
	.version = { 1, 1, 0 },
	.features = DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = glue_ctr,
	.dtr = glue_free,
	.map = glue_map,
	.message = glue_message,
	.status = glue_status,
	.prepare_ioctl = GLUE_PREPARE_IOCTL,
	.iterate_devices = glue_iterate_devices,
};

static int __init glue_init(void)
{
	if (!blkswitch_name_is_valid(name)) {
		DMERR("invalid target name '%s': 1 to %d printable characters without a blank", name,
		      DM_MAX_TYPE_NAME - 1);
		return -EINVAL;
	}
	glue_target_type.name = name;
	return dm_register_target(&glue_target_type);
}

static void __exit glue_exit(void)
{
	dm_unregister_target(&glue_target_type);
}

module_init(glue_init);
module_exit(glue_exit);

MODULE_DESCRIPTION("device-mapper target that sends every region of a device to the path that owns it");
MODULE_AUTHOR("the blkswitch authors");
/* The Rust object is also available under MIT or Apache-2.0; linked into a kernel, the whole is under the GPL. */
MODULE_LICENSE("GPL");
