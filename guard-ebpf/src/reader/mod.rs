//! How the parser gets at packets: the only access to them.

mod skb;
mod xdp;

pub use skb::SkbReader;
pub use xdp::FrameReader;
