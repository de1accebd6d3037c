//! Cuts an archive into the parts of a multipart upload, and takes its SHA-256 and its size on the way.
//!
//! Each part is handed over as owned bytes, because a store may have to send it again. Holds one part at most.

use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// The size and SHA-256 of the bytes that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// A writer that fills parts of the sizes that `sizes` gives, and hands each full one to `send`.
pub(super) struct PartWriter<I, F> {
    sizes: I,
    send: F,
    part: Vec<u8>,
    part_bytes: usize,
    bytes: u64,
    digest: Sha256,
}

impl<I, F> PartWriter<I, F>
where
    I: Iterator<Item = u64>,
    F: FnMut(Bytes) -> io::Result<()>,
{
    pub(super) fn new(sizes: I, send: F) -> Self {
        Self { sizes, send, part: Vec::new(), part_bytes: 0, bytes: 0, digest: Sha256::new() }
    }

    /// Hands over the last part, which may have any size.
    pub(super) fn finish(mut self) -> io::Result<Written> {
        if !self.part.is_empty() {
            (self.send)(Bytes::from(self.part))?;
        }
        Ok(Written { bytes: self.bytes, sha256: hex::encode(self.digest.finalize()) })
    }

    fn part_begin(&mut self) -> io::Result<()> {
        let bytes = self.sizes.next().ok_or_else(|| io::Error::other("the archive does not fit into the parts that the store allows; allow more or larger ones in its configuration (parts_max, part_bytes_min)"))?;
        self.part_bytes = usize::try_from(bytes).map_err(io::Error::other)?.max(1);
        self.part = Vec::with_capacity(self.part_bytes);
        Ok(())
    }
}

impl<I, F> Write for PartWriter<I, F>
where
    I: Iterator<Item = u64>,
    F: FnMut(Bytes) -> io::Result<()>,
{
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.part.capacity() == 0 {
            self.part_begin()?;
        }
        let room = self.part_bytes - self.part.len();
        let taken = buffer.get(..room).unwrap_or(buffer);
        self.part.extend_from_slice(taken);
        self.digest.update(taken);
        self.bytes += taken.len() as u64;
        if self.part.len() == self.part_bytes {
            (self.send)(Bytes::from(std::mem::take(&mut self.part)))?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(sizes: &[u64], content: &[u8]) -> io::Result<(Vec<usize>, Written)> {
        let mut parts = Vec::new();
        let mut writer = PartWriter::new(sizes.iter().copied(), |part: Bytes| {
            parts.push(part);
            Ok(())
        });
        writer.write_all(content)?;
        let written = writer.finish()?;
        assert_eq!(parts.concat(), content);
        Ok((parts.iter().map(Bytes::len).collect(), written))
    }

    #[test]
    fn parts_have_the_sizes_asked_for_and_the_last_one_what_is_left() {
        assert_eq!(cut(&[2, 3, 4], b"abcdefgh").unwrap().0, [2, 3, 3]);
        assert_eq!(cut(&[2, 3], b"abcde").unwrap().0, [2, 3]);
        assert_eq!(cut(&[2], b"").unwrap().0, [0_usize; 0]);
    }

    #[test]
    fn size_and_digest_are_of_the_whole() {
        let (_, written) = cut(&[1, 2, 4], b"abc").unwrap();
        assert_eq!(written.bytes, 3);
        assert_eq!(written.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn too_few_parts_are_an_error() {
        assert!(cut(&[1, 1], b"abc").unwrap_err().to_string().contains("parts_max"));
    }
}
