//! Addresses and bit strings as text.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Malformed;
use super::reader::Reader;

/// `inet` leaves out the width of a single host; `cidr` always has it.
pub(super) fn address(bytes: &[u8], always_width: bool) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let (_family, width, _is_cidr, length) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
    let address = reader.rest();
    if usize::from(length) != address.len() {
        return Err(Malformed);
    }
    let (text, host_width) = if let Ok(octets) = <[u8; 4]>::try_from(address) {
        (Ipv4Addr::from(octets).to_string(), 32)
    } else {
        let octets = <[u8; 16]>::try_from(address).map_err(|_length| Malformed)?;
        (Ipv6Addr::from(octets).to_string(), 128)
    };
    Ok(if always_width || width != host_width { format!("{text}/{width}") } else { text })
}

/// `macaddr` and `macaddr8`.
pub(super) fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// `bit` and `varbit`.
pub(super) fn bits(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = usize::try_from(reader.i32()?).map_err(|_negative| Malformed)?;
    let octets = reader.rest();
    if octets.len() != count.div_ceil(8) {
        return Err(Malformed);
    }
    let bit = |index: usize| if octets[index / 8] & (0x80 >> (index % 8)) == 0 { '0' } else { '1' };
    Ok((0..count).map(bit).collect())
}
