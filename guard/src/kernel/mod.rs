//! The kernel's side of guard, and the only module that names aya: loading, attaching, pinning and asking what is in force.
