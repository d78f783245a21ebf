//! aes-xts
