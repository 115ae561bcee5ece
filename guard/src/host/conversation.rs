//! Questions to the kernel over netlink, and its answers.
//!
//! A netlink socket speaks of the network namespace that it was made in.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Questions to the kernel, one at a time, each waited for.
#[derive(Debug)]
pub(super) struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Nobody but the kernel is listened to.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and takes every answer up to the end of the list, or the acknowledgement.
    pub fn ask<Q, A>(&mut self, question: Q, flags: u16, mut take: impl FnMut(A)) -> io::Result<()>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.take_answers(&datagram, &mut take)? == Answers::AllTaken {
                return Ok(());
            }
        }
    }

    /// Takes the messages of one datagram.
    fn take_answers<A>(&self, datagram: &[u8], take: &mut impl FnMut(A)) -> io::Result<Answers>
    where
        A: NetlinkDeserializable,
    {
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(unreadable)?.length() as usize;
            let message = NetlinkMessage::<A>::deserialize(rest).map_err(unreadable)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            // What is left of an answer that was given up on.
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => take(answer),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(Answers::AllTaken),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(Answers::AllTaken),
                NetlinkPayload::Overrun(_) => {
                    return Err(io::Error::other("the kernel's answer was cut short"));
                }
                _ => {}
            }
        }
        Ok(Answers::MoreToCome)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    AllTaken,
    MoreToCome,
}

fn unreadable(error: DecodeError) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel's answer can't be read: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, ErrorMessage};
    use netlink_packet_sock_diag::{
        AF_INET, SockDiagMessage, TCP_ESTABLISHED,
        inet::{InetResponse, InetResponseHeader, SocketId},
    };
    use netlink_sys::protocols::NETLINK_SOCK_DIAG;

    use super::*;

    /// Messages as the kernel sends them, to a conversation that waits for the answer with this number.
    fn taken(
        messages: Vec<NetlinkMessage<SockDiagMessage>>,
        sequence: u32,
    ) -> io::Result<(usize, Answers)> {
        let mut datagram = Vec::new();
        for mut message in messages {
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            datagram.extend(bytes);
        }
        let conversation = Conversation { socket: Socket::new(NETLINK_SOCK_DIAG)?, sequence };
        let mut count = 0;
        let answers = conversation.take_answers(&datagram, &mut |_: SockDiagMessage| count += 1)?;
        Ok((count, answers))
    }

    fn message(
        sequence: u32,
        payload: NetlinkPayload<SockDiagMessage>,
    ) -> NetlinkMessage<SockDiagMessage> {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        NetlinkMessage::new(header, payload)
    }

    fn answer(sequence: u32) -> NetlinkMessage<SockDiagMessage> {
        let header = InetResponseHeader {
            family: AF_INET,
            state: TCP_ESTABLISHED,
            timer: None,
            socket_id: SocketId::new_v4(),
            recv_queue: 0,
            send_queue: 0,
            uid: 0,
            inode: 77,
        };
        let response = InetResponse { header, nlas: Vec::new().into() };
        message(sequence, SockDiagMessage::InetResponse(Box::new(response)).into())
    }

    fn end(sequence: u32, code: i32) -> NetlinkMessage<SockDiagMessage> {
        let mut done = DoneMessage::default();
        done.code = code;
        message(sequence, NetlinkPayload::Done(done))
    }

    fn error(sequence: u32, code: i32) -> NetlinkMessage<SockDiagMessage> {
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZeroI32::new(code);
        error.header = vec![0; 16];
        message(sequence, NetlinkPayload::Error(error))
    }

    #[test]
    fn answers_are_taken_up_to_their_end() {
        assert_eq!(taken(vec![answer(7), answer(7)], 7).unwrap(), (2, Answers::MoreToCome));
        assert_eq!(taken(vec![answer(7), end(7, 0)], 7).unwrap(), (1, Answers::AllTaken));
        assert_eq!(taken(vec![error(7, 0)], 7).unwrap(), (0, Answers::AllTaken));
        // Answers to what was asked before are none to this.
        let stale = vec![answer(6), end(6, 0), error(6, -libc::EPERM), answer(7)];
        assert_eq!(taken(stale, 7).unwrap(), (1, Answers::MoreToCome));
        assert_eq!(taken(Vec::new(), 7).unwrap(), (0, Answers::MoreToCome));
    }

    #[test]
    fn an_error_is_one_wherever_it_stands() {
        let code = |messages| taken(messages, 7).unwrap_err().raw_os_error();
        assert_eq!(code(vec![error(7, -libc::EOPNOTSUPP)]), Some(libc::EOPNOTSUPP));
        assert_eq!(code(vec![answer(7), end(7, -libc::EINTR)]), Some(libc::EINTR));
        let conversation =
            Conversation { socket: Socket::new(NETLINK_SOCK_DIAG).unwrap(), sequence: 7 };
        let cut_short = conversation.take_answers(&[1, 2, 3], &mut |_: SockDiagMessage| ());
        assert_eq!(cut_short.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
