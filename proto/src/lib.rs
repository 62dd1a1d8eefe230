//! The `tidegate.v1` API: generated types, clients and servers, and the descriptor set that reflection serves.
//!
//! The `.proto` files beside this crate are the API's documentation; nothing is written by hand here.

/// The packages below `tidegate`.
pub mod tidegate {
    /// Everything under `package tidegate.v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
    }
}

/// The packages below `google`.
pub mod google {
    /// The wire format of `google.rpc.Status` and the error details that Tidegate sends.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
    }
}

pub use google::rpc;
pub use tidegate::v1;

/// A serialised `google.protobuf.FileDescriptorSet` of all files and their imports, with comments.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
