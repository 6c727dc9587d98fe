//! The name of a full block's content: its tokens and all tokens before it.
use sha2::{Digest, Sha256};

/// Hash of a block's tokens chained to the block before. SHA-256, because two prompts of different callers
/// must never share a block by a collision, not even by one made on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// What stands before the first block of requests with this salt, so that others never find theirs.
    pub fn of_salt(salt: &str) -> Self {
        // Neither a name nor a token's number begins so: no salt can be chosen to be the name of a block.
        Self(Sha256::digest([b"a salt, no block", salt.as_bytes()].concat()).into())
    }

    /// Names of the full blocks of `tokens` from block `known.len()` on, appended to `known`; the first follows `salt`.
    pub fn extend(known: &mut Vec<Self>, salt: Option<Self>, tokens: &[u32], block_size: usize) {
        for block in tokens.chunks_exact(block_size).skip(known.len()) {
            let mut hasher = Sha256::new();
            if let Some(Self(parent)) = known.last().or(salt.as_ref()) {
                hasher.update(parent);
            }
            for token in block {
                hasher.update(token.to_le_bytes());
            }
            known.push(Self(hasher.finalize().into()));
        }
    }
}
