//! The login: the text that both sides exchange, the parameters that they negotiate, and the proof
//! that the user knows the secret (CHAP, RFC 1994).
//!
//! Contract: pure; [`super::session`] moves the bytes. No error and no log contains a secret.

use super::pdu::MAX_DATA;

/// The most data in bytes that this initiator sends unasked, or for one request. This costs the
/// target little memory and takes little time on the way.
const BURST: u32 = 256 << 10;
/// Longest CHAP challenge in bytes, a limit of the protocol.
const MAX_CHALLENGE: usize = 1024;
/// MD5, the one CHAP algorithm that every target has.
const MD5: &str = "5";

/// The negotiated parameters, without those that have only one acceptable value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Whether headers have a digest.
    pub(super) digest: bool,
    /// Longest data segment that the target accepts, in bytes.
    pub(super) most_data: u32,
    /// Most data that may be sent unasked, in bytes.
    pub(super) first_burst: u32,
    /// Whether data may be sent with the command.
    pub(super) immediate: bool,
    /// Whether further data must wait for the target's request.
    pub(super) wait_for_request: bool,
}

impl Default for Agreed {
    fn default() -> Agreed {
        Agreed {
            digest: false,
            // The defaults of the standard.
            most_data: 8 << 10,
            first_burst: 64 << 10,
            immediate: true,
            wait_for_request: true,
        }
    }
}

/// Encodes pairs of keys and values.
pub(super) fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let pairs = pairs.iter().flat_map(|(key, value)| [key, "=", value, "\0"]);
    pairs.collect::<String>().into_bytes()
}

/// The pairs in a text. Skips words that are not pairs.
pub(super) fn pairs(text: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let words = text.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    words.filter_map(|word| word.split_once('='))
}

/// The value of a key in a text.
pub(super) fn value<'a>(text: &'a [u8], wanted: &str) -> Option<&'a str> {
    pairs(text).find(|(key, _)| *key == wanted).map(|(_, value)| value)
}

/// The text that offers this initiator's values, for the operational stage.
pub(super) fn offer() -> Vec<u8> {
    let (most, burst) = (MAX_DATA.to_string(), BURST.to_string());
    text(&[
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "None"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", &burst),
        ("FirstBurstLength", &burst),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "0"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("MaxRecvDataSegmentLength", &most),
    ])
}

/// Keys of a target that need no answer: it only informs, or it answers the offer.
const TOLD: [&str; 20] = [
    "HeaderDigest",
    "DataDigest",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "ErrorRecoveryLevel",
    "MaxConnections",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "IFMarker",
    "OFMarker",
    "MaxRecvDataSegmentLength",
    "TargetAlias",
    "TargetAddress",
    "TargetPortalGroupTag",
    "AuthMethod",
];

impl Agreed {
    /// Takes a target's answers. Returns the text that rejects unknown keys. An error quotes the
    /// pair that is not acceptable.
    pub(super) fn take(&mut self, text: &[u8]) -> Result<Vec<u8>, String> {
        let mut reply = Vec::new();
        for (key, value) in pairs(text) {
            let number = |most: u32| value.parse::<u32>().ok().filter(|n| (512..=most).contains(n));
            let is_good = match (key, value) {
                ("HeaderDigest", "None" | "CRC32C") => {
                    self.digest = value == "CRC32C";
                    true
                }
                ("InitialR2T", "Yes" | "No") => {
                    self.wait_for_request = value == "Yes";
                    true
                }
                ("ImmediateData", "Yes" | "No") => {
                    self.immediate = value == "Yes";
                    true
                }
                ("HeaderDigest" | "InitialR2T" | "ImmediateData", _) => false,
                // Any size is acceptable. Data segments that are sent have at most `BURST` bytes.
                ("MaxRecvDataSegmentLength", _) => {
                    number((1 << 24) - 1).map(|n| self.most_data = n.min(BURST) & !3).is_some()
                }
                ("FirstBurstLength", _) => {
                    number((1 << 24) - 1).map(|n| self.first_burst = n.min(BURST) & !3).is_some()
                }
                ("MaxBurstLength", _) => number((1 << 24) - 1).is_some(),
                ("DataDigest", value) => value == "None",
                ("DataPDUInOrder" | "DataSequenceInOrder", value) => value == "Yes",
                ("ErrorRecoveryLevel", value) => value == "0",
                (key, _) if TOLD.contains(&key) => true,
                (key, _) if key.starts_with("CHAP_") => true,
                (_, "NotUnderstood" | "Irrelevant" | "Reject") => true,
                (key, _) => {
                    reply.extend(self::text(&[(key, "NotUnderstood")]));
                    true
                }
            };
            if !is_good && !matches!(value, "NotUnderstood" | "Irrelevant") {
                return Err(format!("the target answers '{key}={value}', which was not offered"));
            }
        }
        Ok(reply)
    }
}

/// Builds the answer to a CHAP challenge.
pub(super) fn chap(text: &[u8], name: &str, secret: &[u8]) -> Result<Vec<u8>, String> {
    let missing = |key: &str| format!("the target sends no {key}, or one that makes no sense");
    let get = |key: &str| value(text, key).ok_or_else(|| missing(key));
    if get("CHAP_A")? != MD5 {
        return Err("the target wants another algorithm of CHAP than MD5".into());
    }
    let number: u8 = number(get("CHAP_I")?)
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| missing("CHAP_I"))?;
    let challenge = bytes(get("CHAP_C")?).ok_or_else(|| missing("CHAP_C"))?;
    let all = [&[number][..], secret, &challenge].concat();
    let hash: String = md5::compute(all).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(self::text(&[("CHAP_N", name), ("CHAP_R", &format!("0x{hash}"))]))
}

/// The text that offers the algorithm.
pub(super) fn algorithm() -> Vec<u8> {
    text(&[("CHAP_A", MD5)])
}

fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

/// Decodes a binary value in hexadecimal or base64. `None` if it is malformed, empty or too long.
fn bytes(value: &str) -> Option<Vec<u8>> {
    let (form, digits) = (value.get(..2)?, value.get(2..)?);
    let bytes = match form {
        "0x" | "0X" => {
            let digit = |c: char| c.to_digit(16).map(|digit| digit as u8);
            let digits: Option<Vec<u8>> = digits.chars().map(digit).collect();
            digits?
                .rchunks(2)
                .rev()
                .map(|pair| pair.iter().fold(0, |all, d| all << 4 | d))
                .collect()
        }
        "0b" | "0B" => base64(digits)?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= MAX_CHALLENGE).then_some(bytes)
}

fn base64(digits: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for c in digits.trim_end_matches('=').bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, held) = ((bits << 6 | u32::from(digit)) & 0xffff, held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

/// The error text for a failed login, by status class and detail.
pub(super) fn refusal([class, detail]: [u8; 2]) -> String {
    let why = match (class, detail) {
        (2, 1) => "who logs in, or his secret, is not accepted",
        (2, 2) => "this initiator may not use the target",
        (2, 3) => "there is no such target",
        (2, 4) => "the target has been removed",
        (2, 6) => "there are too many connections",
        (2, 7) => "a parameter is missing",
        (3, 1) => "the target is not operational",
        (3, 2) => "the target has no resources left",
        _ => "the target says no more",
    };
    format!("Failed to log in to target: {why} (status {class:#04x}, {detail:#04x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_answers_is_agreed_and_nothing_else() {
        let mut agreed = Agreed::default();
        let answer = "InitialR2T=No\0ImmediateData=No\0MaxRecvDataSegmentLength=8192\0FirstBurstLength=65536\0\
                      HeaderDigest=CRC32C\0TargetPortalGroupTag=1\0X-com.example=1\0";
        assert_eq!(agreed.take(answer.as_bytes()).unwrap(), b"X-com.example=NotUnderstood\0");
        let wanted = Agreed {
            digest: true,
            most_data: 8192,
            first_burst: 65536,
            immediate: false,
            wait_for_request: false,
        };
        assert_eq!(agreed, wanted);
        for bad in [
            "HeaderDigest=MD5",
            "DataDigest=CRC32C",
            "MaxRecvDataSegmentLength=0",
            "MaxRecvDataSegmentLength=99999999999",
            "FirstBurstLength=16777216",
            "DataPDUInOrder=No",
            "ErrorRecoveryLevel=2",
            "ImmediateData=Maybe",
        ] {
            let error = Agreed::default().take(bad.as_bytes()).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_challenge_is_answered_as_the_standard_says() {
        // By openssl: md5 of 0x27, "hunter2hunter2", 0x01 0x02 0xfe.
        let wanted = format!("{:x}", md5::compute(b"\x27hunter2hunter2\x01\x02\xfe"));
        for challenge in ["0x0102fe", "0X0102FE", "0x102fe", "0bAQL+"] {
            let text = format!("CHAP_A=5\0CHAP_I=39\0CHAP_C={challenge}\0");
            let answer = chap(text.as_bytes(), "me", b"hunter2hunter2").unwrap();
            assert_eq!(value(&answer, "CHAP_N"), Some("me"));
            assert_eq!(value(&answer, "CHAP_R"), Some(&*format!("0x{wanted}")), "{challenge}");
        }
        for bad in [
            "",
            "CHAP_A=7\0CHAP_I=1\0CHAP_C=0x01",
            "CHAP_A=5\0CHAP_I=256\0CHAP_C=0x01",
            "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x",
            "CHAP_A=5\0CHAP_I=1\0CHAP_C=é",
            "CHAP_A=5\0CHAP_I=1\0CHAP_C=0b???",
        ] {
            assert!(chap(bad.as_bytes(), "me", b"hunter2").is_err(), "{bad}");
        }
    }
}
