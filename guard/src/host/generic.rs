//! Generic netlink: families of questions that the kernel knows by name (`include/uapi/linux/genetlink.h`).

use std::{convert::Infallible, io};

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLA_F_NESTED, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP,
    NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::conversation::Conversation;

/// The family that knows the others (`GENL_ID_CTRL`), its question for one of them, and the attributes of it and of the answer.
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `struct genlmsghdr`: the command, the family's version, and two reserved octets.
const HEADER_BYTES: usize = 4;
const VERSION: u8 = 1;

/// A family of questions about the network namespace of the thread that has opened it.
#[derive(Debug)]
pub(super) struct Family {
    conversation: Conversation,
    id: u16,
}

impl Family {
    /// # Errors
    /// `ENOENT` when this kernel has no such family; any other when it can't be asked.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut family =
            Self { conversation: Conversation::open(NETLINK_GENERIC)?, id: CONTROLLER };
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let mut id = None;
        let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, text);
        family.ask(CTRL_CMD_GETFAMILY, vec![name], |answer| {
            id = id.or(answer.find(CTRL_ATTR_FAMILY_ID).and_then(Value::as_u16));
        })?;
        family.id = id.ok_or(io::ErrorKind::NotFound)?;
        Ok(family)
    }

    /// Asks about one thing.
    ///
    /// # Errors
    /// What the kernel answers instead.
    pub fn ask(
        &mut self,
        command: u8,
        attributes: Vec<DefaultNla>,
        take: impl FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        self.converse(command, attributes, NLM_F_ACK, take)
    }

    /// Asks for a list.
    ///
    /// # Errors
    /// What the kernel answers instead.
    pub fn list(
        &mut self,
        command: u8,
        attributes: Vec<DefaultNla>,
        take: impl FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        self.converse(command, attributes, NLM_F_DUMP, take)
    }

    fn converse(
        &mut self,
        command: u8,
        attributes: Vec<DefaultNla>,
        flags: u16,
        mut take: impl FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        let question = Question { family: self.id, command, attributes };
        self.conversation.ask(question, flags, |Answer(bytes)| take(Attributes(&bytes)))
    }
}

/// An attribute of 32 bits.
pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

/// An attribute that holds others.
pub(super) fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; inner.buffer_len()];
    inner.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// The attributes of an answer, or those inside one of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// Each, up to the first that is cut short.
    pub fn iter(self) -> impl Iterator<Item = (u16, Value<'a>)> {
        NlasIterator::new(self.0).map_while(Result::ok).map(|attribute| {
            let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
            let value = attribute.into_inner().get(NLA_HEADER_SIZE..length);
            (kind, Value(value.unwrap_or_default()))
        })
    }

    pub fn find(self, kind: u16) -> Option<Value<'a>> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    pub fn as_u16(self) -> Option<u16> {
        Some(u16::from_ne_bytes(self.0.try_into().ok()?))
    }

    pub fn as_u32(self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.try_into().ok()?))
    }

    pub fn as_u64(self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.try_into().ok()?))
    }

    /// The 32 bits at an offset, of a value that is a record.
    pub fn u32_at(self, offset: usize) -> Option<u32> {
        Value(self.0.get(offset..)?.get(..4)?).as_u32()
    }

    /// A text without the zero that ends it.
    pub fn as_text(self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok().map(|text| text.trim_end_matches('\0'))
    }

    pub fn inside(self) -> Attributes<'a> {
        Attributes(self.0)
    }
}

struct Question {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&[self.command, VERSION, 0, 0]);
        self.attributes.as_slice().emit(attributes);
    }
}

/// An answer's attributes, as they came.
struct Answer(Vec<u8>);

impl NetlinkDeserializable for Answer {
    type Error = Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self(payload.get(HEADER_BYTES..).unwrap_or_default().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
        let mut bytes = vec![0; attributes.buffer_len()];
        attributes.emit(&mut bytes);
        bytes
    }

    #[test]
    fn attributes_are_found_by_their_kind_also_inside_others() {
        let text = DefaultNla::new(5, b"rx-lro\0".to_vec());
        let bytes = emitted(&[text, nest(2, &[number(1, 7), number(3, 9)]), number(9, 1)]);
        let all = Attributes(&bytes);
        assert_eq!(all.find(5).and_then(Value::as_text), Some("rx-lro"));
        assert_eq!(all.find(9).and_then(Value::as_u32), Some(1));
        let inside = all.find(2).unwrap().inside();
        assert_eq!(inside.find(3).and_then(Value::as_u32), Some(9));
        assert!(all.find(3).is_none());
        // A number of another size is none.
        assert_eq!(all.find(9).and_then(Value::as_u16), None);
        assert_eq!(all.find(9).and_then(Value::as_u64), None);
    }

    #[test]
    fn the_kernel_knows_ethtool_and_no_nonsense() {
        assert!(Family::open("ethtool").unwrap().id >= CONTROLLER);
        let error = Family::open("no-such-family").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    proptest! {
        #[test]
        fn no_answer_makes_reading_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, value) in Attributes(&bytes).iter() {
                let _ = (value.as_u32(), value.as_text(), value.inside().iter().count());
            }
        }

        #[test]
        fn what_is_written_is_read(values in proptest::collection::vec((0..0x1000_u16, proptest::collection::vec(any::<u8>(), 0..30)), 0..20)) {
            let written: Vec<_> =
                values.iter().map(|(kind, value)| DefaultNla::new(*kind, value.clone())).collect();
            let bytes = emitted(&written);
            let read: Vec<_> =
                Attributes(&bytes).iter().map(|(kind, value)| (kind, value.0.to_vec())).collect();
            prop_assert_eq!(read, values);
        }
    }
}
