//! CRC-64/XZ, computed eight bytes at a time. It is the checksum of everything in a state folder.
//!
//! Contract: pure. Any change within 64 neighbouring bits gives another checksum.

/// The polynomial of ECMA-182, reflected.
const POLYNOMIAL: u64 = 0xC96C_5795_D787_0F42;
/// `TABLES[k][byte]`: the contribution of a byte that `k` zero bytes follow.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u64, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut further = 1;
    while further < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u64 = tables[further - 1][byte];
            tables[further][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        further += 1;
    }
    tables
}

/// A checksum that is being computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checksum(u64);

impl Checksum {
    pub(super) fn new() -> Checksum {
        Checksum(!0)
    }

    /// Adds eight bytes, the lowest first.
    pub(super) fn word(&mut self, word: u64) {
        let bytes = (self.0 ^ word).to_le_bytes();
        self.0 = bytes
            .iter()
            .zip(TABLES.iter().rev())
            .fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)]);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        for byte in rest {
            let at = usize::from(self.0 as u8 ^ byte);
            self.0 = self.0 >> 8 ^ TABLES[0][at];
        }
    }

    pub(super) fn value(self) -> u64 {
        !self.0
    }
}

/// The checksum of `bytes`.
pub(super) fn of(bytes: &[u8]) -> u64 {
    let mut checksum = Checksum::new();
    checksum.bytes(bytes);
    checksum.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crc_64_xz() {
        assert_eq!(of(b"123456789"), 0x995D_C9BB_DF19_39FA);
        assert_eq!(of(b""), 0);
        let mut words = Checksum::new();
        words.word(u64::from_le_bytes(*b"12345678"));
        words.bytes(b"9");
        assert_eq!(words.value(), of(b"123456789"));
    }
}
