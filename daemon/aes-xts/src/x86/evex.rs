//! The loop that `vaes512.rs` and `vaes256.rs` share: one program, written once, for 512-bit and for 256-bit vectors.
//!
//! How it runs at the machine's limit:
//! - Sixteen vectors of data are in flight. A round takes four cycles and two may start in each, so eight would do if
//!   nothing else ever took their turn; with sixteen, something may.
//! - A round key is loaded once per sixteen rounds, into one of two registers, straight from the schedule. Nothing of a
//!   key outlives the two rounds around it, and the registers that it leaves free hold the tweaks' bases.
//! - Tweaks follow from the base of their chunk and not from each other, in one of two ways.
//!   `bits`: T·x^s is two shifts, one multiplication by a constant for the bits that fall out, and one sum, for all s from 0
//!   to 31 alike (0 to 15 in 256-bit vectors).
//!   `bytes`: only the first two vectors of a sector are made so; every other is one of the two before it, times x^8 to
//!   x^32: two shifts by whole bytes, the same multiplication and sum.
//!   Which is faster is a matter of ports. AMD's bit shifts (but for `vpshldvq`) and multiplications run beside AES. Intel has
//!   one port for AES on 512-bit vectors, on which bit shifts take turns with it, 2 of 16, and another for shuffles, byte
//!   shifts and multiplications.
//! - The tweaks of the next sixteen vectors are made between the rounds of these, into the other half of a ring in the
//!   caller's scratch, so that the first round of the next turn never waits.
//! - The first whitening is one `vpternlogq`; the last round adds `key 14 ^ tweak` instead of a key, which makes the
//!   second tweak addition free.
//!
//! Sectors are a stream of chunks of eight vectors; a chunk that begins a sector takes its base from the list of
//! encrypted sector numbers, any other from its predecessor, x^32 (x^16) on.
//!
//! Everything is in one `asm!` block, so that the compiler sees no key, no tweak and no data: it can neither spill nor
//! copy one. All that is written is the destination and the scratch.

/// Shift counts of the eight vectors of a chunk, left and right, then the polynomial.
#[repr(C, align(64))]
pub(super) struct Counts {
    left: [[u64; 8]; 8],
    right: [[u64; 8]; 8],
    reduction: [u64; 8],
}

impl Counts {
    /// For vectors of `blocks` blocks. 256-bit vectors use the first half of what one row would hold.
    pub(super) const fn new(blocks: usize) -> Self {
        let mut left = [0; 64];
        let mut right = [64; 64];
        let mut word = 0;
        while word < 16 * blocks {
            left[word] = word as u64 / 2;
            right[word] = 64 - word as u64 / 2;
            word += 1;
        }
        Self { left: rows(left), right: rows(right), reduction: [0x86, 0, 0x86, 0, 0x86, 0, 0x86, 0] }
    }
}

const fn rows(flat: [u64; 64]) -> [[u64; 8]; 8] {
    let mut rows = [[0; 8]; 8];
    let mut word = 0;
    while word < 64 {
        rows[word / 8][word % 8] = flat[word];
        word += 1;
    }
    rows
}

/// `$op` with `$key` on four registers of data.
macro_rules! aes4 {
    ($v:literal $op:literal $key:literal: $a:literal $b:literal $c:literal $d:literal) => {
        concat!(
            $op, " ", $v, $a, ",", $v, $a, ",", $v, $key, "\n", $op, " ", $v, $b, ",", $v, $b, ",", $v, $key,
            "\n", $op, " ", $v, $c, ",", $v, $c, ",", $v, $key, "\n", $op, " ", $v, $d, ",", $v, $d, ",", $v,
            $key, "\n",
        )
    };
}

/// Round `$round` of sixteen vectors with `$key`, loading the next round's key meanwhile; the rest goes in between.
macro_rules! round16 {
    ($v:literal $op:literal $round:literal $key:literal $next:literal: $a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!(
            "vbroadcasti32x4 ", $v, $next, ",[{keys}+16*", $round, "+16]\n",
            aes4!($v $op $key: "0" "1" "2" "3"), $a,
            aes4!($v $op $key: "4" "5" "6" "7"), $b,
            aes4!($v $op $key: "8" "9" "10" "11"), $c,
            aes4!($v $op $key: "12" "13" "14" "15"), $d,
        )
    };
}

/// The same for eight vectors, with nothing in between.
macro_rules! round8 {
    ($v:literal $op:literal $round:literal $key:literal $next:literal) => {
        concat!(
            "vbroadcasti32x4 ", $v, $next, ",[{keys}+16*", $round, "+16]\n",
            aes4!($v $op $key: "0" "1" "2" "3"),
            aes4!($v $op $key: "4" "5" "6" "7"),
        )
    };
}

/// Tweaks of vector `$j` of the chunk with base `$b` (its halves swapped: `$s`), first part: shift, and multiply what fell
/// out. x^128 = x^7+x^2+x+1; the 1 is already there, because the shift of the swapped base puts it there.
macro_rules! tweak_begin {
    ($v:literal $w:literal $j:literal: $b:literal $s:literal -> $x:literal $y:literal $z:literal) => {
        concat!(
            "vpsrlvq ",
            $v,
            $y,
            ",",
            $v,
            $s,
            ",[{counts}+512+",
            $w,
            "*",
            $j,
            "]\n",
            "vpsllvq ",
            $v,
            $x,
            ",",
            $v,
            $b,
            ",[{counts}+",
            $w,
            "*",
            $j,
            "]\n",
            "vpclmulqdq ",
            $v,
            $z,
            ",",
            $v,
            $y,
            ",",
            $v,
            "18,0\n",
        )
    };
}

/// Second part: sum and keep, in the half of the ring for what comes next.
macro_rules! tweak_end {
    ($v:literal $w:literal $first:literal $j:literal: $x:literal $y:literal $z:literal) => {
        concat!(
            "vpternlogq ",
            $v,
            $x,
            ",",
            $v,
            $y,
            ",",
            $v,
            $z,
            ",0x96\n",
            "vmovdqu64 [{next}+",
            $w,
            "*(",
            $first,
            "+",
            $j,
            ")],",
            $v,
            $x,
            "\n",
        )
    };
}

/// The base of the chunk after the one with base `$pb`: the next sector's first tweak, or x^32 (x^16) times this one.
macro_rules! advance {
    (bytes $v:literal $w:literal $bits:literal: $pb:literal $ps:literal -> $b:literal $s:literal) => {
        concat!(
            "dec {left}\n",
            "jnz 30f\n",
            "vbroadcasti32x4 ",
            $v,
            $b,
            ",[{firsts}]\n",
            "vpshufd ",
            $v,
            $s,
            ",",
            $v,
            $b,
            ",0x4e\n",
            "add {firsts},16\n",
            "mov {left},{per}\n",
            "vpsrlvq ",
            $v,
            "23,",
            $v,
            $s,
            ",[{counts}+512]\n",
            "vpsrlvq ",
            $v,
            "26,",
            $v,
            $s,
            ",[{counts}+512+",
            $w,
            "]\n",
            "vpsllvq ",
            $v,
            $s,
            ",",
            $v,
            $b,
            ",[{counts}+",
            $w,
            "]\n",
            "vpsllvq ",
            $v,
            $b,
            ",",
            $v,
            $b,
            ",[{counts}]\n",
            "jmp 31f\n",
            "30:\n",
            "vpsrldq ",
            $v,
            "23,",
            $v,
            $pb,
            ",16-",
            $bits,
            "/8\n",
            "vpsrldq ",
            $v,
            "26,",
            $v,
            $ps,
            ",16-",
            $bits,
            "/8\n",
            "vpslldq ",
            $v,
            $b,
            ",",
            $v,
            $pb,
            ",",
            $bits,
            "/8\n",
            "vpslldq ",
            $v,
            $s,
            ",",
            $v,
            $ps,
            ",",
            $bits,
            "/8\n",
            "31:\n",
            "vpclmulqdq ",
            $v,
            "24,",
            $v,
            "23,",
            $v,
            "18,0\n",
            "vpclmulqdq ",
            $v,
            "27,",
            $v,
            "26,",
            $v,
            "18,0\n",
            "vpternlogq ",
            $v,
            $b,
            ",",
            $v,
            "23,",
            $v,
            "24,0x96\n",
            "vpternlogq ",
            $v,
            $s,
            ",",
            $v,
            "26,",
            $v,
            "27,0x96\n",
        )
    };
    (bits $v:literal $w:literal $bits:literal: $pb:literal $ps:literal -> $b:literal $s:literal) => {
        concat!(
            "dec {left}\n",
            "jnz 30f\n",
            "vbroadcasti32x4 ",
            $v,
            $b,
            ",[{firsts}]\n",
            "vpshufd ",
            $v,
            $s,
            ",",
            $v,
            $b,
            ",0x4e\n",
            "add {firsts},16\n",
            "mov {left},{per}\n",
            "jmp 31f\n",
            "30:\n",
            "vpsrlq ",
            $v,
            "23,",
            $v,
            $ps,
            ",64-",
            $bits,
            "\n",
            "vpsllq ",
            $v,
            $b,
            ",",
            $v,
            $pb,
            ",",
            $bits,
            "\n",
            "vpclmulqdq ",
            $v,
            "24,",
            $v,
            "23,",
            $v,
            "18,0\n",
            "vpternlogq ",
            $v,
            $b,
            ",",
            $v,
            "23,",
            $v,
            "24,0x96\n",
            "vpshufd ",
            $v,
            $s,
            ",",
            $v,
            $b,
            ",0x4e\n",
            "31:\n",
        )
    };
}

/// Begin and end of a tweak vector in the even (base 19) and the odd (base 21) chunk of a turn.
macro_rules! begin {
    (bits $v:literal $w:literal even $j:literal) => { tweak_begin!($v $w $j: "19" "20" -> "23" "24" "25") };
    (bits $v:literal $w:literal odd $j:literal) => { tweak_begin!($v $w $j: "21" "22" -> "26" "27" "28") };
    (bytes $v:literal $w:literal $half:ident "0") => { "" };
    (bytes $v:literal $w:literal $half:ident "1") => { "" };
    (bytes $v:literal $w:literal $half:ident "2") => { begin!($v $half first "1" "15") };
    (bytes $v:literal $w:literal $half:ident "3") => { begin!($v $half second "1" "15") };
    (bytes $v:literal $w:literal $half:ident "4") => { begin!($v $half first "2" "14") };
    (bytes $v:literal $w:literal $half:ident "5") => { begin!($v $half second "2" "14") };
    (bytes $v:literal $w:literal $half:ident "6") => { begin!($v $half first "3" "13") };
    (bytes $v:literal $w:literal $half:ident "7") => { begin!($v $half second "3" "13") };
    ($v:literal even first $k:literal $rest:literal) => { byte_begin!($v $k $rest: "19" -> "23" "24" "25") };
    ($v:literal even second $k:literal $rest:literal) => { byte_begin!($v $k $rest: "20" -> "23" "24" "25") };
    ($v:literal odd first $k:literal $rest:literal) => { byte_begin!($v $k $rest: "21" -> "26" "27" "28") };
    ($v:literal odd second $k:literal $rest:literal) => { byte_begin!($v $k $rest: "22" -> "26" "27" "28") };
}
macro_rules! end {
    (bytes $v:literal $w:literal even "0") => { keep!($v $w "0" "0": "19") };
    (bytes $v:literal $w:literal even "1") => { keep!($v $w "0" "1": "20") };
    (bytes $v:literal $w:literal odd "0") => { keep!($v $w "8" "0": "21") };
    (bytes $v:literal $w:literal odd "1") => { keep!($v $w "8" "1": "22") };
    ($mode:ident $v:literal $w:literal even $j:literal) => { tweak_end!($v $w "0" $j: "23" "24" "25") };
    ($mode:ident $v:literal $w:literal odd $j:literal) => { tweak_end!($v $w "8" $j: "26" "27" "28") };
}

/// As [`tweak_begin`], from the first or second vector of the chunk, `$k` bytes on.
macro_rules! byte_begin {
    ($v:literal $k:literal $rest:literal: $from:literal -> $x:literal $y:literal $z:literal) => {
        concat!(
            "vpsrldq ",
            $v,
            $y,
            ",",
            $v,
            $from,
            ",",
            $rest,
            "\n",
            "vpslldq ",
            $v,
            $x,
            ",",
            $v,
            $from,
            ",",
            $k,
            "\n",
            "vpclmulqdq ",
            $v,
            $z,
            ",",
            $v,
            $y,
            ",",
            $v,
            "18,0\n",
        )
    };
}

/// Keeps a vector of tweaks that is ready.
macro_rules! keep {
    ($v:literal $w:literal $first:literal $j:literal: $x:literal) => {
        concat!("vmovdqu64 [{next}+", $w, "*(", $first, "+", $j, ")],", $v, $x, "\n")
    };
}

/// Loads and whitens data vectors: data ^ key 0 ^ tweak. Leaves key 1 in register 16.
macro_rules! whiten {
    ($v:literal $w:literal: $($i:literal)*) => {
        concat!(
            "vbroadcasti32x4 ", $v, "29,[{keys}]\n",
            "vbroadcasti32x4 ", $v, "16,[{keys}+16]\n",
            $(
                "vmovdqu64 ", $v, $i, ",[{source}+", $w, "*", $i, "]\n",
                "vpternlogq ", $v, $i, ",", $v, "29,[{this}+", $w, "*", $i, "],0x96\n",
            )*
        )
    };
}

/// The last round with key 14, which is in register 17, and the second tweak addition in one; stores.
macro_rules! finish {
    ($v:literal $w:literal $op:literal: $($i:literal)*) => {
        concat!(
            $(
                "vpxorq ", $v, "29,", $v, "17,[{this}+", $w, "*", $i, "]\n",
                $op, " ", $v, $i, ",", $v, $i, ",", $v, "29\n",
                "vmovdqu64 [{target}+", $w, "*", $i, "],", $v, $i, "\n",
            )*
        )
    };
}

/// Clears every vector register.
macro_rules! clear_registers {
    () => {
        concat!(
            "vzeroall\n",
            "vpxord zmm16,zmm16,zmm16\n",
            "vpxord zmm17,zmm17,zmm17\n",
            "vpxord zmm18,zmm18,zmm18\n",
            "vpxord zmm19,zmm19,zmm19\n",
            "vpxord zmm20,zmm20,zmm20\n",
            "vpxord zmm21,zmm21,zmm21\n",
            "vpxord zmm22,zmm22,zmm22\n",
            "vpxord zmm23,zmm23,zmm23\n",
            "vpxord zmm24,zmm24,zmm24\n",
            "vpxord zmm25,zmm25,zmm25\n",
            "vpxord zmm26,zmm26,zmm26\n",
            "vpxord zmm27,zmm27,zmm27\n",
            "vpxord zmm28,zmm28,zmm28\n",
            "vpxord zmm29,zmm29,zmm29\n",
            "vpxord zmm30,zmm30,zmm30\n",
            "vpxord zmm31,zmm31,zmm31\n",
        )
    };
}

/// All rounds over the chunks of a job: `$fn` for `$op`, `$last` on vectors `$v` of `$w` bytes.
macro_rules! evex_rounds {
    ($(#[$attribute:meta])* $name:ident: $mode:ident $v:literal $w:literal $bits:literal $op:literal $last:literal) => {
        $(#[$attribute])*
        #[inline(never)]
        unsafe fn $name(stream: &Stream<'_>) {
            let (turns, tail) = (stream.chunks / 2, stream.chunks % 2);
            // SAFETY: see UNSAFE.md, "kernels". Reads `chunks` chunks of source, the schedule and the list of first
            // tweaks (with the two entries past its end that a scratch has), writes as much of the target and the ring.
            unsafe {
                core::arch::asm!(
                    concat!("vmovdqu64 ", $v, "18,[{counts}+1024]"),
                    "mov {left:e},1",
                    advance!($mode $v $w $bits: "21" "22" -> "19" "20"),
                    advance!($mode $v $w $bits: "19" "20" -> "21" "22"),
                    begin!($mode $v $w even "0"), begin!($mode $v $w odd "0"), end!($mode $v $w even "0"), end!($mode $v $w odd "0"),
                    begin!($mode $v $w even "1"), begin!($mode $v $w odd "1"), end!($mode $v $w even "1"), end!($mode $v $w odd "1"),
                    begin!($mode $v $w even "2"), begin!($mode $v $w odd "2"), end!($mode $v $w even "2"), end!($mode $v $w odd "2"),
                    begin!($mode $v $w even "3"), begin!($mode $v $w odd "3"), end!($mode $v $w even "3"), end!($mode $v $w odd "3"),
                    begin!($mode $v $w even "4"), begin!($mode $v $w odd "4"), end!($mode $v $w even "4"), end!($mode $v $w odd "4"),
                    begin!($mode $v $w even "5"), begin!($mode $v $w odd "5"), end!($mode $v $w even "5"), end!($mode $v $w odd "5"),
                    begin!($mode $v $w even "6"), begin!($mode $v $w odd "6"), end!($mode $v $w even "6"), end!($mode $v $w odd "6"),
                    begin!($mode $v $w even "7"), begin!($mode $v $w odd "7"), end!($mode $v $w even "7"), end!($mode $v $w odd "7"),
                    "test {turns},{turns}",
                    "jz 3f",
                    ".p2align 6",
                    "2:",
                    "xchg {this},{next}",
                    whiten!($v $w: "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
                    round16!($v $op "1" "16" "17": "", advance!($mode $v $w $bits: "21" "22" -> "19" "20"), "", ""),
                    round16!($v $op "2" "17" "16": "", advance!($mode $v $w $bits: "19" "20" -> "21" "22"), "", ""),
                    round16!($v $op "3" "16" "17":
                        begin!($mode $v $w even "0"), begin!($mode $v $w odd "0"), end!($mode $v $w even "0"), begin!($mode $v $w even "1")),
                    round16!($v $op "4" "17" "16":
                        concat!(end!($mode $v $w odd "0"), begin!($mode $v $w odd "1")), end!($mode $v $w even "1"),
                        begin!($mode $v $w even "2"), end!($mode $v $w odd "1")),
                    round16!($v $op "5" "16" "17":
                        begin!($mode $v $w odd "2"), end!($mode $v $w even "2"), "", end!($mode $v $w odd "2")),
                    round16!($v $op "6" "17" "16":
                        begin!($mode $v $w even "3"), "", begin!($mode $v $w odd "3"), end!($mode $v $w even "3")),
                    round16!($v $op "7" "16" "17":
                        end!($mode $v $w odd "3"), begin!($mode $v $w even "4"), "", begin!($mode $v $w odd "4")),
                    round16!($v $op "8" "17" "16":
                        end!($mode $v $w even "4"), end!($mode $v $w odd "4"), begin!($mode $v $w even "5"), ""),
                    round16!($v $op "9" "16" "17":
                        begin!($mode $v $w odd "5"), end!($mode $v $w even "5"), end!($mode $v $w odd "5"), ""),
                    round16!($v $op "10" "17" "16":
                        begin!($mode $v $w even "6"), "", begin!($mode $v $w odd "6"), end!($mode $v $w even "6")),
                    round16!($v $op "11" "16" "17":
                        end!($mode $v $w odd "6"), begin!($mode $v $w even "7"), "", begin!($mode $v $w odd "7")),
                    round16!($v $op "12" "17" "16": end!($mode $v $w even "7"), end!($mode $v $w odd "7"), "", ""),
                    round16!($v $op "13" "16" "17": "", "", "", ""),
                    finish!($v $w $last: "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
                    concat!("add {source},16*", $w),
                    concat!("add {target},16*", $w),
                    "dec {turns}",
                    "jnz 2b",
                    "3:",
                    "test {tail},{tail}",
                    "jz 4f",
                    "xchg {this},{next}",
                    whiten!($v $w: "0" "1" "2" "3" "4" "5" "6" "7"),
                    round8!($v $op "1" "16" "17"), round8!($v $op "2" "17" "16"), round8!($v $op "3" "16" "17"),
                    round8!($v $op "4" "17" "16"), round8!($v $op "5" "16" "17"), round8!($v $op "6" "17" "16"),
                    round8!($v $op "7" "16" "17"), round8!($v $op "8" "17" "16"), round8!($v $op "9" "16" "17"),
                    round8!($v $op "10" "17" "16"), round8!($v $op "11" "16" "17"), round8!($v $op "12" "17" "16"),
                    round8!($v $op "13" "16" "17"),
                    finish!($v $w $last: "0" "1" "2" "3" "4" "5" "6" "7"),
                    "4:",
                    clear_registers!(),
                    keys = in(reg) stream.keys,
                    source = inout(reg) stream.source => _,
                    target = inout(reg) stream.target => _,
                    firsts = inout(reg) stream.firsts => _,
                    this = inout(reg) stream.ring => _,
                    next = inout(reg) stream.ring.wrapping_add(16 * $w) => _,
                    per = in(reg) stream.chunks_a_sector,
                    left = inout(reg) stream.chunks_a_sector => _,
                    turns = inout(reg) turns => _,
                    tail = in(reg) tail,
                    counts = in(reg) &raw const COUNTS,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                    out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Encrypts the list of sector numbers, eight vectors at a time: `$groups` of them, at least one.
macro_rules! evex_firsts {
    ($(#[$attribute:meta])* $name:ident: $v:literal $w:literal) => {
        $(#[$attribute])*
        #[inline(never)]
        pub(super) unsafe fn $name(keys: *const u8, list: *mut u8, groups: u64) {
            // SAFETY: see UNSAFE.md, "kernels". Reads 15 round keys, rewrites `groups` times eight vectors of the list.
            unsafe {
                core::arch::asm!(
                    "2:",
                    concat!("vbroadcasti32x4 ", $v, "29,[{keys}]"),
                    concat!("vbroadcasti32x4 ", $v, "16,[{keys}+16]"),
                    first_block!($v $w: "0" "1" "2" "3" "4" "5" "6" "7"),
                    round8!($v "vaesenc" "1" "16" "17"), round8!($v "vaesenc" "2" "17" "16"),
                    round8!($v "vaesenc" "3" "16" "17"), round8!($v "vaesenc" "4" "17" "16"),
                    round8!($v "vaesenc" "5" "16" "17"), round8!($v "vaesenc" "6" "17" "16"),
                    round8!($v "vaesenc" "7" "16" "17"), round8!($v "vaesenc" "8" "17" "16"),
                    round8!($v "vaesenc" "9" "16" "17"), round8!($v "vaesenc" "10" "17" "16"),
                    round8!($v "vaesenc" "11" "16" "17"), round8!($v "vaesenc" "12" "17" "16"),
                    round8!($v "vaesenc" "13" "16" "17"),
                    last_block!($v $w: "0" "1" "2" "3" "4" "5" "6" "7"),
                    concat!("add {list},8*", $w),
                    "dec {groups}",
                    "jnz 2b",
                    clear_registers!(),
                    keys = in(reg) keys,
                    list = inout(reg) list => _,
                    groups = inout(reg) groups => _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                    out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// First and last step of [`evex_firsts`]: whole blocks, in place.
macro_rules! first_block {
    ($v:literal $w:literal: $($i:literal)*) => {
        concat!($("vpxorq ", $v, $i, ",", $v, "29,[{list}+", $w, "*", $i, "]\n",)*)
    };
}
macro_rules! last_block {
    ($v:literal $w:literal: $($i:literal)*) => {
        concat!($(
            "vaesenclast ", $v, $i, ",", $v, $i, ",", $v, "17\n",
            "vmovdqu64 [{list}+", $w, "*", $i, "],", $v, $i, "\n",
        )*)
    };
}
