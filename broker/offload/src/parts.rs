//! Cuts a stream of pieces into parts of one size without copying.

use bytes::Bytes;
use std::collections::VecDeque;

/// Pieces that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Parts {
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The first so many bytes, or all.
    pub(crate) fn take(&mut self, bytes: usize) -> Vec<Bytes> {
        let (mut left, mut part) = (bytes.min(self.bytes), Vec::new());
        while left > 0
            && let Some(front) = self.pieces.front_mut()
        {
            let piece = front.split_to(left.min(front.len()));
            if front.is_empty() {
                self.pieces.pop_front();
            }
            left -= piece.len();
            self.bytes -= piece.len();
            part.push(piece);
        }
        part
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.pieces).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_one_size_and_keep_the_order() {
        let mut parts = Parts::default();
        for piece in ["abc", "d", "efghij"] {
            parts.push(Bytes::from(piece));
        }
        let joined = |part: Vec<Bytes>| part.concat();
        assert_eq!(joined(parts.take(2)), b"ab");
        assert_eq!(joined(parts.take(4)), b"cdef");
        assert_eq!(parts.len(), 4);
        assert_eq!(joined(parts.rest()), b"ghij");
        assert_eq!((parts.len(), parts.take(5).len()), (0, 0));
    }
}
