//! Logs breaches of the protocol: one line per connection with the client's bytes, and few lines
//! for all connections together.

use super::Conn;
use crate::export::nbd::proto::EXTENDED_REQUEST_LEN;
use crate::sys::log_limit::LogLimit;

impl Conn {
    /// Logs a breach of the protocol by the request at the start of the input.
    pub(super) fn complain_of_request(&mut self, reason: &str, header_len: usize, outcome: &str) {
        if self.has_complained {
            return;
        }
        let mut header = [0; EXTENDED_REQUEST_LEN];
        let came = self.input.bytes().get(self.start..self.start + header_len).unwrap_or_default();
        let len = came.len().min(header.len());
        header[..len].copy_from_slice(&came[..len]);
        self.complain(reason, &header[..len], outcome);
    }

    /// Logs the first breach of the protocol of this connection, with the client's bytes.
    pub(super) fn complain(&mut self, reason: &str, came: &[u8], outcome: &str) {
        static LIMIT: LogLimit = LogLimit::new();
        if std::mem::replace(&mut self.has_complained, true) {
            return;
        }
        let Some(suppressed) = LIMIT.pass() else { return };
        let hex: String = came.iter().map(|byte| format!("{byte:02x}")).collect();
        tracing::warn!(
            client = %self.peer,
            reason,
            header = hex,
            suppressed,
            "a client breaks the NBD protocol: {outcome} (one line a connection)"
        );
    }
}
