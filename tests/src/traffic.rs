//! Packets that go on while a test does something else.

use std::{
    panic,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    lab::{Lab, OLLAMA, SERVER},
    machine::Machine,
    wait::EndOnDrop,
    wire,
};

/// How long outsiders wait after each packet: the processors have other things to do.
const BETWEEN_PACKETS: Duration = Duration::from_micros(500);

/// Outsiders knock at the guarded port all the time that something is done. Returns how often.
pub fn while_outsiders_send(lab: &Lab, work: impl FnOnce()) -> u64 {
    let wire = lab.wire();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                let stranger = wire::stranger_v4(sent as u16);
                wire.send(&wire::syn((stranger, 4242).into(), SERVER.v4_at(OLLAMA)));
                sent += 1;
                thread::sleep(BETWEEN_PACKETS);
            }
            sent
        });
        let end = EndOnDrop(&is_over);
        work();
        drop(end);
        sender.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// Calls of a client, each of which must be answered. Returns how many.
#[track_caller]
pub fn call_until(is_over: &AtomicBool, client: &Machine) -> u64 {
    let mut answered = 0;
    while !is_over.load(Ordering::Relaxed) {
        client.expect_answer(SERVER.v4_at(OLLAMA));
        answered += 1;
        // A port is not free again for a minute.
        thread::sleep(Duration::from_millis(5));
    }
    answered
}
