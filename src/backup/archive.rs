//! The layers of an archive: what `pg_dump` wrote, compressed by zstd (with its checksum), encrypted by age.
//!
//! Synchronous, for a thread of its own; knows nothing of stores, databases and child processes. An archive that was
//! cut at any byte, or changed in any bit, never reads to a clean end. The stock `age` and `zstd` programs open it too.

use std::fmt;
use std::io::{self, Read, Write};

use age::x25519::{Identity, Recipient};
use zstd::stream::{read::Decoder, write::Encoder};

/// How much is moved at once between the layers.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;

/// The first bytes of every custom-format dump.
pub(super) const DUMP_MAGIC: &[u8] = b"PGDMP";

/// Which layer of an archive is damaged. Travels inside an [`io::Error`], because the layers are readers.
#[derive(Debug, thiserror::Error)]
#[error("{layer}: {reason}")]
pub(super) struct Damage {
    pub layer: Layer,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Encryption,
    Compression,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encryption => "age decryption",
            Self::Compression => "zstd decompression",
        })
    }
}

/// Who may open an archive, as `age1…` texts.
pub(super) fn recipients_parse(texts: &[String]) -> Result<Vec<Recipient>, &'static str> {
    texts.iter().map(|text| text.parse()).collect()
}

/// Compresses and encrypts everything that `plain` gives, and answers with the number of plain bytes and the output.
/// The end of `plain` becomes the archive's end: whether it was the true end is for the caller to know.
pub(super) fn seal<W: Write>(
    plain: &mut impl Read,
    recipients: &[Recipient],
    zstd_level: i32,
    output: W,
) -> io::Result<(u64, W)> {
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let mut encoder = Encoder::new(encryptor.wrap_output(output)?, zstd_level)?;
    encoder.include_checksum(true)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0_u64;
    loop {
        let read = read_some(plain, &mut chunk)?;
        if read == 0 {
            break;
        }
        encoder.write_all(chunk.get(..read).unwrap_or_default())?;
        bytes += read as u64;
    }
    Ok((bytes, encoder.finish()?.finish()?))
}

/// Reads an archive's dump. An error carries a [`Damage`] when a layer is at fault.
pub(super) fn open<'a>(sealed: impl Read + 'a, identity: &Identity) -> io::Result<impl Read + 'a> {
    let damage = |reason: age::DecryptError| in_layer(Layer::Encryption, io::Error::other(reason));
    let decryptor = age::Decryptor::new(sealed).map_err(damage)?;
    let identities = std::iter::once(identity as &dyn age::Identity);
    let decrypted = decryptor.decrypt(identities).map_err(damage)?;
    let decrypted = InLayer { layer: Layer::Encryption, inner: decrypted };
    let decompressed = Decoder::new(decrypted)?;
    Ok(InLayer { layer: Layer::Compression, inner: decompressed })
}

/// The layer that an error of [`open`]'s reader is about, if any.
pub(super) fn damage(error: &io::Error) -> Option<&Damage> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Names the layer in every error that passes, unless a deeper layer was named already.
struct InLayer<R> {
    layer: Layer,
    inner: R,
}

impl<R: Read> Read for InLayer<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_some(&mut self.inner, buffer).map_err(|error| in_layer(self.layer, error))
    }
}

fn in_layer(layer: Layer, error: io::Error) -> io::Error {
    if damage(&error).is_some() {
        return error;
    }
    io::Error::new(error.kind(), Damage { layer, reason: error.to_string() })
}

fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| u8::try_from((i * i / 7 + i) % 251).unwrap()).collect()
    }

    fn sealed(plain: &[u8], identity: &Identity) -> Vec<u8> {
        let (bytes, output) = seal(&mut &*plain, &[identity.to_public()], 3, Vec::new()).unwrap();
        assert_eq!(bytes, plain.len() as u64);
        output
    }

    fn read(sealed: &[u8], identity: &Identity) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        open(sealed, identity)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn every_length_comes_back_and_the_escrow_can_open_it_too() {
        let (tenant, escrow) = (Identity::generate(), Identity::generate());
        for bytes in [0, 1, 65_535, 65_536, 65_537, 3 * CHUNK_BYTES + 1] {
            let plain = plain(bytes);
            let recipients = [tenant.to_public(), escrow.to_public()];
            let (_, sealed) = seal(&mut plain.as_slice(), &recipients, 3, Vec::new()).unwrap();
            assert!(read(&sealed, &tenant).unwrap() == plain, "{bytes} bytes, by the tenant");
            assert!(read(&sealed, &escrow).unwrap() == plain, "{bytes} bytes, by the escrow");
        }
    }

    #[test]
    fn an_archive_cut_anywhere_is_refused() {
        let identity = Identity::generate();
        // Random bytes do not shrink, so that the archive has several of age's chunks of 64 KiB.
        let plain: Vec<u8> = (0..200_000).map(|_| rand::random()).collect();
        let sealed = sealed(&plain, &identity);
        let header = sealed.windows(5).position(|window| window == b"\n--- ").unwrap();
        let boundaries =
            (1..).map(|chunk| header + 49 + 16 + chunk * (65_536 + 16)).take_while(|cut| *cut < sealed.len());
        let near = boundaries.flat_map(|cut| cut - 1..=cut + 1);
        for cut in
            [0, 1, header, header + 49, sealed.len() - 1].into_iter().chain(near).chain((0..sealed.len()).step_by(997))
        {
            assert!(read(sealed.get(..cut).unwrap(), &identity).is_err(), "cut at {cut} of {}", sealed.len());
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused_and_the_layer_is_named() {
        let identity = Identity::generate();
        let sealed = sealed(&plain(20_000), &identity);
        for position in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[position] ^= 1 << (position % 8);
            let error = read(&flipped, &identity).unwrap_err();
            assert_eq!(damage(&error).unwrap().layer, Layer::Encryption, "bit flipped at {position}");
        }
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let identity = Identity::generate();
        let mut sealed = sealed(&plain(1_000), &identity);
        sealed.push(0);
        assert!(read(&sealed, &identity).is_err());
    }

    #[test]
    fn damage_below_the_encryption_is_the_compressions() {
        let identity = Identity::generate();
        let recipient = identity.to_public();
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _)).unwrap();
        let mut writer = encryptor.wrap_output(Vec::new()).unwrap();
        let mut compressed = Encoder::new(Vec::new(), 3).unwrap();
        compressed.include_checksum(true).unwrap();
        compressed.write_all(&plain(1_000)).unwrap();
        let compressed = compressed.finish().unwrap();
        writer.write_all(&compressed[..compressed.len() - 1]).unwrap();
        let error = read(&writer.finish().unwrap(), &identity).unwrap_err();
        assert_eq!(damage(&error).unwrap().layer, Layer::Compression);
    }

    #[test]
    fn another_tenants_identity_opens_nothing() {
        let (tenant, other) = (Identity::generate(), Identity::generate());
        let error = read(&sealed(&plain(10), &tenant), &other).unwrap_err();
        assert_eq!(damage(&error).unwrap().layer, Layer::Encryption);
    }
}
