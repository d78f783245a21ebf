//! AES-256-XTS and the sector tag's POLYVAL in one pass, on 512-bit vectors.
//!
//! `evex.rs` explains the cipher's loop. What is added to it between the rounds:
//! - Each vector of ciphertext is multiplied by a power of the hash key, three `vpclmulqdq` (Karatsuba) without a
//!   reduction; eight vectors share one. The four blocks of a vector are four sums of their own, which meet once a
//!   sector. So eleven powers are enough, whatever the length.
//! - When sealing, the ciphertext of the turn before is hashed, which is in the first-level cache; when opening, that of
//!   this turn, before it is overwritten.
//! - Where AES and bit shifts have ports of their own, `vpclmulqdq` is then the scarcest: tweaks are reduced by three shifts
//!   instead.
//!
//! A sector is whole turns of 1 KiB here. TAG.md has what is hashed.

use std::marker::PhantomData;

use super::evex::Counts;

static COUNTS: Counts = Counts::new(4);

/// x^127+x^126+x^121 (and 1), the reduction of POLYVAL (RFC 8452, 3).
#[repr(C, align(64))]
pub(super) struct Reduction([u64; 8]);

pub(super) static REDUCTION: Reduction = Reduction({
    const HIGH: u64 = 0xC200_0000_0000_0000;
    [HIGH, HIGH, HIGH, HIGH, HIGH, HIGH, HIGH, HIGH]
});

/// x^(8n-33) modulo the polynomial of CRC-32C, reflected: a carry-less product with it and `crc32` of that appends n zero
/// bytes, here 680 and 336.
#[repr(C, align(16))]
struct Shifts([u64; 4]);

static SHIFTS: Shifts = Shifts([0xE417_F38A, 0, 0xA60C_E07B, 0]);

/// What the loop keeps in memory: pointers and counts, nothing secret.
#[repr(C)]
pub(super) struct Tagged<'a> {
    /// Chunks of 512 bytes in a sector.
    pub(super) chunks_a_sector: u64,
    /// Turns of 1 KiB in a sector.
    pub(super) turns_a_sector: u64,
    /// Where the next sector's hash goes: a list in the scratch. When sealing, the first entry is skipped.
    pub(super) hashes: *mut u8,
    /// The next sector's header, 64 bytes each.
    pub(super) headers: *const u8,
    pub(super) keys: *const u8,
    pub(super) source: *const u8,
    pub(super) target: *mut u8,
    pub(super) firsts: *const u8,
    pub(super) ring: *mut u8,
    /// Room for the powers as the loop wants them.
    pub(super) powers: *mut u8,
    pub(super) turns: u64,
    /// Turns until the hashed sector ends.
    pub(super) hash_left: u64,
    /// Where the next sector's checksum goes, as `hashes`.
    pub(super) checksums: *mut u32,
    /// Powers of the hash key, as `tag.rs` lays them out.
    pub(super) narrow_powers: *const u8,
    pub(super) call: PhantomData<&'a ()>,
}

/// One vector of tweaks, as in `evex.rs`, reduced without a multiplication: k1 selects the bits that fell out.
macro_rules! tweak {
    ($first:literal $j:literal: $b:literal $s:literal) => {
        concat!(
            "vpsrlvq zmm24,",
            $s,
            ",[rip+{counts}+512+64*",
            $j,
            "]\n",
            "vpsllvq zmm23,",
            $b,
            ",[rip+{counts}+64*",
            $j,
            "]\n",
            "vpsllq zmm25{{k1}}{{z}},zmm24,1\n",
            "vpternlogq zmm23,zmm24,zmm25,0x96\n",
            "vpsllq zmm25{{k1}}{{z}},zmm24,2\n",
            "vpsllq zmm24{{k1}}{{z}},zmm24,7\n",
            "vpternlogq zmm23,zmm24,zmm25,0x96\n",
            "vmovdqu64 [{next}+64*(",
            $first,
            "+",
            $j,
            ")],zmm23\n",
        )
    };
}
macro_rules! even {
    (bits $j:literal) => { tweak!("0" $j: "zmm19" "zmm20") };
    (bytes "0") => { keep_tweak!("0" "zmm19") };
    (bytes "1") => { keep_tweak!("1" "zmm20") };
    (bytes "2") => { byte_tweak!("2": "zmm19" "1" "15") };
    (bytes "3") => { byte_tweak!("3": "zmm20" "1" "15") };
    (bytes "4") => { byte_tweak!("4": "zmm19" "2" "14") };
    (bytes "5") => { byte_tweak!("5": "zmm20" "2" "14") };
    (bytes "6") => { byte_tweak!("6": "zmm19" "3" "13") };
    (bytes "7") => { byte_tweak!("7": "zmm20" "3" "13") };
}
macro_rules! odd {
    (bits $j:literal) => { tweak!("8" $j: "zmm21" "zmm22") };
    (bytes "0") => { keep_tweak!("8" "zmm21") };
    (bytes "1") => { keep_tweak!("9" "zmm22") };
    (bytes "2") => { byte_tweak!("10": "zmm21" "1" "15") };
    (bytes "3") => { byte_tweak!("11": "zmm22" "1" "15") };
    (bytes "4") => { byte_tweak!("12": "zmm21" "2" "14") };
    (bytes "5") => { byte_tweak!("13": "zmm22" "2" "14") };
    (bytes "6") => { byte_tweak!("14": "zmm21" "3" "13") };
    (bytes "7") => { byte_tweak!("15": "zmm22" "3" "13") };
}

/// Vector `$at` of the turn, from the first or second vector of its chunk, `$k` bytes on: as in `evex.rs`.
macro_rules! byte_tweak {
    ($at:literal: $from:literal $k:literal $rest:literal) => {
        concat!(
            "vpsrldq zmm24,",
            $from,
            ",",
            $rest,
            "\n",
            "vpslldq zmm23,",
            $from,
            ",",
            $k,
            "\n",
            "vpclmulqdq zmm25,zmm24,[rip+{counts}+1024],0\n",
            "vpternlogq zmm23,zmm24,zmm25,0x96\n",
            "vmovdqu64 [{next}+64*",
            $at,
            "],zmm23\n",
        )
    };
}

/// Keeps a vector of tweaks that is ready.
macro_rules! keep_tweak {
    ($at:literal $x:literal) => {
        concat!("vmovdqu64 [{next}+64*", $at, "],", $x, "\n")
    };
}

/// The base of the chunk after the one with base `$pb`.
macro_rules! advance_base {
    (bytes $pb:literal $ps:literal -> $b:literal $s:literal) => {
        concat!(
            "dec {left}\n",
            "jnz 30f\n",
            "mov {left},[{call}+56]\n",
            "vbroadcasti32x4 ",
            $b,
            ",[{left}]\n",
            "add qword ptr [{call}+56],16\n",
            "mov {left},[{call}]\n",
            "vpshufd ",
            $s,
            ",",
            $b,
            ",0x4e\n",
            "vpsrlvq zmm23,",
            $s,
            ",[rip+{counts}+512]\n",
            "vpsrlvq zmm24,",
            $s,
            ",[rip+{counts}+576]\n",
            "vpsllvq ",
            $s,
            ",",
            $b,
            ",[rip+{counts}+64]\n",
            "vpsllvq ",
            $b,
            ",",
            $b,
            ",[rip+{counts}]\n",
            "jmp 31f\n",
            "30:\n",
            "vpsrldq zmm23,",
            $pb,
            ",12\n",
            "vpsrldq zmm24,",
            $ps,
            ",12\n",
            "vpslldq ",
            $b,
            ",",
            $pb,
            ",4\n",
            "vpslldq ",
            $s,
            ",",
            $ps,
            ",4\n",
            "31:\n",
            "vpclmulqdq zmm25,zmm23,[rip+{counts}+1024],0\n",
            "vpternlogq ",
            $b,
            ",zmm23,zmm25,0x96\n",
            "vpclmulqdq zmm25,zmm24,[rip+{counts}+1024],0\n",
            "vpternlogq ",
            $s,
            ",zmm24,zmm25,0x96\n",
        )
    };
    (bits $pb:literal $ps:literal -> $b:literal $s:literal) => {
        concat!(
            "dec {left}\n",
            "jnz 30f\n",
            "mov {left},[{call}+56]\n",
            "vbroadcasti32x4 ",
            $b,
            ",[{left}]\n",
            "add qword ptr [{call}+56],16\n",
            "mov {left},[{call}]\n",
            "jmp 31f\n",
            "30:\n",
            "vpsrlq zmm24,",
            $ps,
            ",32\n",
            "vpsllq ",
            $b,
            ",",
            $pb,
            ",32\n",
            "vpsllq zmm25{{k1}}{{z}},zmm24,1\n",
            "vpternlogq ",
            $b,
            ",zmm24,zmm25,0x96\n",
            "vpsllq zmm25{{k1}}{{z}},zmm24,2\n",
            "vpsllq zmm24{{k1}}{{z}},zmm24,7\n",
            "vpternlogq ",
            $b,
            ",zmm24,zmm25,0x96\n",
            "31:\n",
            "vpshufd ",
            $s,
            ",",
            $b,
            ",0x4e\n",
        )
    };
}

/// Products of the vectors in zmm29 and zmm30 with powers `$p` and `$q`, the even one below it, by Karatsuba: low, high and middle ones are
/// summed by `$sum`. The multiplications stand together: see the top of this file.
macro_rules! products {
    ($p:literal $q:literal $sum:literal) => {
        concat!(
            "vpshufd zmm23,zmm29,0x4e\n",
            "vpshufd zmm24,zmm30,0x4e\n",
            "vpxorq zmm23,zmm23,zmm29\n",
            "vpxorq zmm24,zmm24,zmm30\n",
            "vpclmulqdq zmm25,zmm29,[{powers}+64*",
            $p,
            "],0x00\n",
            "vpclmulqdq zmm31,zmm30,[{powers}+64*",
            $q,
            "],0x00\n",
            "vpclmulqdq zmm29,zmm29,[{powers}+64*",
            $p,
            "],0x11\n",
            "vpclmulqdq zmm30,zmm30,[{powers}+64*",
            $q,
            "],0x11\n",
            "vpclmulqdq zmm23,zmm23,[{powers}+1024+32*",
            $q,
            "],0x10\n",
            "vpclmulqdq zmm24,zmm24,[{powers}+1024+32*",
            $q,
            "],0x00\n",
            "vpternlogq zmm26,zmm25,zmm31,",
            $sum,
            "\n",
            "vpternlogq zmm28,zmm29,zmm30,",
            $sum,
            "\n",
            "vpternlogq zmm27,zmm23,zmm24,",
            $sum,
            "\n",
        )
    };
}

/// Begins eight vectors: the sum so far by the highest power, and vector `$i` by the next.
macro_rules! hash_begin {
    ($i:literal) => {
        concat!(
            "vmovdqa64 zmm29,zmm18\n",
            "vmovdqu64 zmm30,[{hashed}+64*", $i, "]\n",
            products!("15" "14" "0x66"),
        )
    };
}

/// Vectors `$i` and `$j` of the hashed turn by powers `$p` and `$q`.
macro_rules! hash {
    ($i:literal $j:literal: $p:literal $q:literal) => {
        concat!(
            "vmovdqu64 zmm29,[{hashed}+64*", $i, "]\n",
            "vmovdqu64 zmm30,[{hashed}+64*", $j, "]\n",
            products!($p $q "0x96"),
        )
    };
}

/// Writes the powers, spread over vectors, into the scratch: first whole ones, then the sums of their halves, of each `$i`
/// in the even quarters and of its `$j` in the odd ones.
macro_rules! spread {
    ($($i:literal $j:literal)*) => {
        concat!($(
            "vbroadcasti32x4 zmm23,[{a}+16*(15-", $i, ")]\n",
            "vbroadcasti32x4 zmm24,[{a}+16*(15-", $j, ")]\n",
            "vmovdqu64 [{powers}+64*", $i, "],zmm23\n",
            "vmovdqu64 [{powers}+64*", $j, "],zmm24\n",
            "vpshufd zmm25,zmm23,0x4e\n",
            "vpxorq zmm23,zmm23,zmm25\n",
            "vpshufd zmm25,zmm24,0x4e\n",
            "vpxorq zmm23{{k2}},zmm24,zmm25\n",
            "vmovdqu64 [{powers}+1024+32*", $i, "],zmm23\n",
        )*)
    };
}

/// Reduces the three sums: what is left is the sum of zmm28, zmm29 and zmm30.
macro_rules! hash_reduce {
    () => {
        concat!(
            "vpternlogq zmm27,zmm26,zmm28,0x96\n",
            "vpshufd zmm27,zmm27,0x4e\n",
            "vpxorq zmm26{{k2}},zmm26,zmm27\n",
            "vpxorq zmm28{{k1}},zmm28,zmm27\n",
            "vpclmulqdq zmm30,zmm26,[rip+{reduction}],0x00\n",
            "vpshufd zmm29,zmm26,0x4e\n",
            "vpxorq zmm26,zmm29,zmm30\n",
            "vpclmulqdq zmm30,zmm26,[rip+{reduction}],0x00\n",
            "vpshufd zmm29,zmm26,0x4e\n",
        )
    };
}

/// Ends sixteen vectors: the last one, `$i`, has power zero.
macro_rules! hash_end {
    ($i:literal) => {
        concat!(
            hash_reduce!(),
            "vpternlogq zmm28,zmm29,zmm30,0x96\n",
            "vpxorq zmm18,zmm28,[{hashed}+64*",
            $i,
            "]\n",
        )
    };
}

/// When a sector's last turn was hashed: the four sums by H^4, H^3, H^2 and H meet, go to the list, and the next header
/// begins the next sum.
macro_rules! sector_end {
    () => {
        concat!(
            "dec qword ptr [{call}+88]\n",
            "jnz 32f\n",
            "mov {b},[{call}+104]\n",
            "vmovdqu64 zmm30,[{b}+240]\n",
            "vpshufd zmm31,zmm18,0x4e\n",
            "vpshufd zmm29,zmm30,0x4e\n",
            "vpxorq zmm31,zmm31,zmm18\n",
            "vpxorq zmm29,zmm29,zmm30\n",
            "vpclmulqdq zmm26,zmm18,zmm30,0x00\n",
            "vpclmulqdq zmm28,zmm18,zmm30,0x11\n",
            "vpclmulqdq zmm27,zmm31,zmm29,0x00\n",
            hash_reduce!(),
            "vpternlogq zmm28,zmm29,zmm30,0x96\n",
            "vextracti64x4 ymm29,zmm28,1\n",
            "vpxorq ymm29,ymm29,ymm28\n",
            "vextracti32x4 xmm30,ymm29,1\n",
            "vpxorq xmm29,xmm29,xmm30\n",
            "mov {b},[{call}+16]\n",
            "vmovdqu64 [{b}],xmm29\n",
            "add {b},16\n",
            "mov [{call}+16],{b}\n",
            "mov {b},[{call}+24]\n",
            "vmovdqu64 zmm18,[{b}]\n",
            "add {b},64\n",
            "mov [{call}+24],{b}\n",
            "mov {b},[{call}+8]\n",
            "mov [{call}+88],{b}\n",
            "not {a:e}\n",
            "mov {b},[{call}+96]\n",
            "mov [{b}],{a:e}\n",
            "add qword ptr [{call}+96],4\n",
            "mov {a:e},-1\n",
            "xor {b:e},{b:e}\n",
            "32:\n",
        )
    };
}

/// Words `$i` of the three parts of the hashed turn, each by a checksum of its own: one alone would wait for itself. The
/// parts have 43, 43 and 42 words.
macro_rules! crc {
    ($($i:literal)*) => {
        concat!($(
            "crc32 {a},qword ptr [{hashed}+8*", $i, "]\n",
            "crc32 {b},qword ptr [{hashed}+344+8*", $i, "]\n",
            "crc32 {c},qword ptr [{hashed}+688+8*", $i, "]\n",
        )*)
    };
}

/// The last words of the longer parts.
macro_rules! crc_last {
    () => {
        concat!("crc32 {a},qword ptr [{hashed}+8*42]\n", "crc32 {b},qword ptr [{hashed}+344+8*42]\n",)
    };
}

/// The three checksums as one, in `a`, which goes on with the next turn.
macro_rules! crc_join {
    () => {
        concat!(
            "vmovd xmm29,{a:e}\n",
            "vmovd xmm30,{b:e}\n",
            "vpclmulqdq xmm29,xmm29,[rip+{shifts}],0x00\n",
            "vpclmulqdq xmm30,xmm30,[rip+{shifts}+16],0x00\n",
            "vpxorq xmm29,xmm29,xmm30\n",
            "vmovq {b},xmm29\n",
            "xor {a:e},{a:e}\n",
            "crc32 {a},{b}\n",
            "xor {a:e},{c:e}\n",
            "xor {b:e},{b:e}\n",
            "xor {c:e},{c:e}\n",
        )
    };
}

macro_rules! load {
    ($($i:literal)*) => {
        concat!(
            "vbroadcasti32x4 zmm29,[{keys}]\n",
            "vbroadcasti32x4 zmm16,[{keys}+16]\n",
            $(
                "vmovdqu64 zmm", $i, ",[{source}+64*", $i, "]\n",
                "vpternlogq zmm", $i, ",zmm29,[{this}+64*", $i, "],0x96\n",
            )*
        )
    };
}

macro_rules! store {
    ($last:literal: $($i:literal)*) => {
        concat!(
            $(
                "vpxorq zmm29,zmm17,[{this}+64*", $i, "]\n",
                $last, " zmm", $i, ",zmm", $i, ",zmm29\n",
                "vmovdqu64 [{target}+64*", $i, "],zmm", $i, "\n",
            )*
        )
    };
}

/// `$hashed` is where a turn finds what it hashes; `$first` what it is in the first turn; `$after` what is left to hash
/// when all is encrypted.
macro_rules! tagged_rounds {
    ($name:ident: $mode:ident $op:literal $last:literal, $first:literal, $step:expr, $header:expr, $after:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
        #[inline(never)]
        pub(super) unsafe fn $name(call: &mut Tagged<'_>) {
            // SAFETY: see UNSAFE.md, "kernels". Reads `turns` KiB of source, the schedules, the list and as many headers as
            // sectors, and one more; writes as much of the target, the ring and the list.
            unsafe {
                core::arch::asm!(
                    "mov {left:e},0x55",
                    "kmovd k1,{left:e}",
                    "mov {left:e},0xaa",
                    "kmovd k2,{left:e}",
                    "mov {a},[{call}+104]",
                    spread!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
                    "mov {left:e},1",
                    advance_base!($mode "zmm21" "zmm22" -> "zmm19" "zmm20"),
                    "mov {a:e},-1",
                    "xor {b:e},{b:e}",
                    "xor {c:e},{c:e}",
                    $header,
                    advance_base!($mode "zmm19" "zmm20" -> "zmm21" "zmm22"),
                    even!($mode "0"), odd!($mode "0"), even!($mode "1"), odd!($mode "1"), even!($mode "2"), odd!($mode "2"), even!($mode "3"), odd!($mode "3"),
                    even!($mode "4"), odd!($mode "4"), even!($mode "5"), odd!($mode "5"), even!($mode "6"), odd!($mode "6"), even!($mode "7"), odd!($mode "7"),
                    concat!("mov {hashed},", $first),
                    ".p2align 6",
                    "2:",
                    "xchg {this},{next}",
                    load!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
                    round16!("zmm" $op "1" "16" "17":
                        concat!(advance_base!($mode "zmm21" "zmm22" -> "zmm19" "zmm20"), hash_begin!("0")),
                        "",
                        even!($mode "0"),
                        ""),
                    round16!("zmm" $op "2" "17" "16":
                        advance_base!($mode "zmm19" "zmm20" -> "zmm21" "zmm22"),
                        "",
                        concat!(hash!("1" "2": "13" "12"), crc!("0")),
                        concat!(odd!($mode "0"), crc!("1"))),
                    round16!("zmm" $op "3" "16" "17":
                        crc!("2"),
                        concat!(even!($mode "1"), crc!("3")),
                        crc!("4"),
                        crc!("5")),
                    round16!("zmm" $op "4" "17" "16":
                        concat!(odd!($mode "1"), hash!("3" "4": "11" "10"), crc!("6")),
                        crc!("7"),
                        concat!(even!($mode "2"), crc!("8")),
                        crc!("9")),
                    round16!("zmm" $op "5" "16" "17":
                        crc!("10"),
                        concat!(odd!($mode "2"), hash!("5" "6": "9" "8"), crc!("11")),
                        crc!("12"),
                        concat!(even!($mode "3"), crc!("13"))),
                    round16!("zmm" $op "6" "17" "16":
                        crc!("14"),
                        crc!("15"),
                        concat!(odd!($mode "3"), crc!("16")),
                        crc!("17")),
                    round16!("zmm" $op "7" "16" "17":
                        concat!(even!($mode "4"), crc!("18")),
                        concat!(hash!("7" "8": "7" "6"), crc!("19")),
                        crc!("20"),
                        concat!(odd!($mode "4"), crc!("21"))),
                    round16!("zmm" $op "8" "17" "16":
                        crc!("22"),
                        concat!(even!($mode "5"), crc!("23")),
                        crc!("24"),
                        crc!("25")),
                    round16!("zmm" $op "9" "16" "17":
                        concat!(odd!($mode "5"), hash!("9" "10": "5" "4"), crc!("26")),
                        crc!("27"),
                        concat!(even!($mode "6"), hash!("11" "12": "3" "2"), crc!("28")),
                        crc!("29")),
                    round16!("zmm" $op "10" "17" "16":
                        crc!("30"),
                        concat!(odd!($mode "6"), crc!("31")),
                        crc!("32"),
                        concat!(even!($mode "7"), crc!("33"))),
                    round16!("zmm" $op "11" "16" "17":
                        crc!("34"),
                        concat!(hash!("13" "14": "1" "0"), crc!("35")),
                        concat!(odd!($mode "7"), crc!("36")),
                        crc!("37")),
                    round16!("zmm" $op "12" "17" "16":
                        crc!("38"),
                        crc!("39"),
                        concat!(hash_end!("15"), crc!("40")),
                        crc!("41")),
                    round16!("zmm" $op "13" "16" "17":
                        crc_last!(),
                        "",
                        crc_join!(),
                        sector_end!()),
                    store!($last: "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15"),
                    $step,
                    "add {source},1024",
                    "add {target},1024",
                    "dec qword ptr [{call}+80]",
                    "jnz 2b",
                    $after,
                    clear_registers!(),
                    call = in(reg) call,
                    keys = in(reg) call.keys,
                    source = inout(reg) call.source => _,
                    target = inout(reg) call.target => _,
                    this = inout(reg) call.ring => _,
                    next = inout(reg) call.ring.wrapping_add(1024) => _,
                    left = out(reg) _,
                    a = out(reg) _,
                    b = out(reg) _,
                    c = out(reg) _,
                    hashed = out(reg) _,
                    powers = in(reg) call.powers,
                    counts = sym COUNTS,
                    reduction = sym REDUCTION,
                    shifts = sym SHIFTS,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                    out("zmm30") _, out("zmm31") _, out("k1") _, out("k2") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Hashes the turn at `hashed` at once.
macro_rules! hash_turn {
    () => {
        concat!(
            hash_begin!("0"),
            hash!("1" "2": "13" "12"), hash!("3" "4": "11" "10"), hash!("5" "6": "9" "8"),
            hash!("7" "8": "7" "6"),
            hash!("9" "10": "5" "4"), hash!("11" "12": "3" "2"), hash!("13" "14": "1" "0"),
            hash_end!("15"),
        )
    };
}

// A turn behind: the first turn hashes what is nothing yet, and ends a sector that was none.
macro_rules! seal_rounds {
    ($name:ident: $mode:ident) => {
        tagged_rounds!(
            $name: $mode "vaesenc" "vaesenclast",
            "{target}",
            "mov {hashed},{target}",
            "vpxorq zmm18,zmm18,zmm18",
            concat!(
                hash_turn!(),
                crc!("0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15" "16" "17" "18" "19" "20"),
                crc!("21" "22" "23" "24" "25" "26" "27" "28" "29" "30" "31" "32" "33" "34" "35" "36" "37" "38" "39" "40" "41"),
                crc_last!(),
                crc_join!(),
                sector_end!(),
            )
        );
    };
}
macro_rules! open_rounds {
    ($name:ident: $mode:ident) => {
        tagged_rounds!(
            $name: $mode "vaesdec" "vaesdeclast",
            "{source}",
            "lea {hashed},[{source}+1024]",
            concat!(
                "mov {hashed},[{call}+24]\n",
                "vmovdqu64 zmm18,[{hashed}]\n",
                "add qword ptr [{call}+24],64\n",
            ),
            ""
        );
    };
}

seal_rounds!(seal_bits: bits);
seal_rounds!(seal_bytes: bytes);
open_rounds!(open_bits: bits);
open_rounds!(open_bytes: bytes);
