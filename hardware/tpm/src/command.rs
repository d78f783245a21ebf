//! Commands and responses as bytes (TPM 2.0 Library, part 3). No input or output here.

use attestation::wire::constant::{ALG_NULL, ALG_SHA256, RH_ENDORSEMENT};
use attestation::wire::{Malformed, Reader, Writer};
use attestation::{Credential, Digest, Register, primary_parameters, selection};

/// Longest response that is taken; TPMs send at most 4096 bytes.
pub(crate) const RESPONSE_BYTES_MAX: usize = 4096;

/// Bytes of the part that says how long a response is.
pub(crate) const HEADER_BYTES: usize = 10;

/// What every TPM gives of its storage in one answer.
pub(crate) const NV_BYTES_AT_ONCE: u16 = 512;

const WITHOUT_SESSIONS: u16 = 0x8001;
const WITH_SESSIONS: u16 = 0x8002;
const RH_NULL: u32 = 0x4000_0007;
const PASSWORD: u32 = 0x4000_0009;
const POLICY_SESSION: u8 = 1;

/// A command, and what its answer begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Whether a handle precedes the answer's parameters.
    makes_handle: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) handle: Option<u32>,
    parameters: Vec<u8>,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done(Response),
    /// Busy: to be sent again.
    Again,
    Refused(u32),
}

impl Request {
    /// `sessions` authorise the first handles, each with an empty password or by its policy.
    fn new(name: &'static str, code: u32, handles: &[u32], sessions: &[u32], parameters: &[u8]) -> Self {
        let handles = handles.iter().fold(Writer::new(), |area, handle| area.u32(*handle)).finish();
        let sessions = sessions
            .iter()
            // Without a nonce; the session ends with the command; without a password.
            .fold(Writer::new(), |area, session| area.u32(*session).sized(&[]).u8(0).sized(&[]))
            .finish();
        let tag = if sessions.is_empty() { WITHOUT_SESSIONS } else { WITH_SESSIONS };
        let length_of_sessions = if sessions.is_empty() { Vec::new() } else { length(sessions.len()) };
        let body = [handles, length_of_sessions, sessions, parameters.to_vec()].concat();
        let bytes =
            Writer::new().u16(tag).bytes(&length(HEADER_BYTES + body.len())).u32(code).bytes(&body).finish();
        Self { name, bytes, makes_handle: false }
    }

    fn makes_handle(self) -> Self {
        Self { makes_handle: true, ..self }
    }

    /// Takes the answer apart.
    pub(crate) fn answer(&self, bytes: &[u8]) -> Result<Answer, Malformed> {
        let mut reader = Reader::new(bytes, "response");
        let tag = reader.u16()?;
        if usize::try_from(reader.u32()?) != Ok(bytes.len()) {
            return Err(reader.malformed());
        }
        match reader.u32()? {
            0 => {}
            // Retry, yielded, testing, NV rate.
            0x922 | 0x908 | 0x90a | 0x920 => return Ok(Answer::Again),
            code => return Ok(Answer::Refused(code)),
        }
        let handle = if self.makes_handle { Some(reader.u32()?) } else { None };
        let parameters = match tag {
            WITH_SESSIONS => {
                let length = usize::try_from(reader.u32()?).map_err(|_| reader.malformed())?;
                reader.bytes(length)?
            }
            WITHOUT_SESSIONS => reader.rest(),
            _ => return Err(reader.malformed()),
        };
        Ok(Answer::Done(Response { handle, parameters: parameters.to_vec() }))
    }
}

/// Loaded objects that are asked for: more than a TPM has room for.
const LOADED_MAX: u32 = 64;

fn length(bytes: usize) -> Vec<u8> {
    // Commands have some hundred bytes.
    Writer::new().u32(u32::try_from(bytes).unwrap_or(u32::MAX)).finish()
}

pub(crate) fn extend(register: Register, digest: &Digest) -> Request {
    let values = Writer::new().u32(1).u16(ALG_SHA256).bytes(digest).finish();
    Request::new("PCR_Extend", 0x0182, &[u32::from(register.number())], &[PASSWORD], &values)
}

pub(crate) fn read(register: Register) -> Request {
    Request::new("PCR_Read", 0x017e, &[], &[], &selection_of(register))
}

fn selection_of(register: Register) -> Vec<u8> {
    let bits = (1_u32 << register.number()).to_le_bytes();
    let [low, middle, high, _] = bits;
    Writer::new().u32(1).u16(ALG_SHA256).u8(3).bytes(&[low, middle, high]).finish()
}

pub(crate) fn create_primary(template: &[u8]) -> Request {
    let parameters = primary_parameters(template);
    Request::new("CreatePrimary", 0x0131, &[RH_ENDORSEMENT], &[PASSWORD], &parameters).makes_handle()
}

pub(crate) fn quote(key: u32, for_whom: &Digest) -> Request {
    // The key's own scheme.
    let parameters = Writer::new().sized(for_whom).u16(ALG_NULL).bytes(&selection()).finish();
    Request::new("Quote", 0x0158, &[key], &[PASSWORD], &parameters)
}

/// A session without secrets: its policy asks for an authorisation that is empty, so nothing hangs on its nonces.
pub(crate) fn start_policy_session() -> Request {
    let parameters =
        Writer::new().sized(&[0; 32]).sized(&[]).u8(POLICY_SESSION).u16(ALG_NULL).u16(ALG_SHA256).finish();
    Request::new("StartAuthSession", 0x0176, &[RH_NULL, RH_NULL], &[], &parameters).makes_handle()
}

pub(crate) fn policy_secret(session: u32) -> Request {
    let parameters = Writer::new().sized(&[]).sized(&[]).sized(&[]).u32(0).finish();
    Request::new("PolicySecret", 0x0151, &[RH_ENDORSEMENT, session], &[PASSWORD], &parameters)
}

pub(crate) fn activate_credential(
    attestation: u32,
    endorsement: u32,
    session: u32,
    credential: &Credential,
) -> Request {
    let parameters = Writer::new().sized(&credential.object).sized(&credential.seed).finish();
    Request::new("ActivateCredential", 0x0147, &[attestation, endorsement], &[PASSWORD, session], &parameters)
}

/// The handle is a parameter here.
pub(crate) fn flush(handle: u32) -> Request {
    Request::new("FlushContext", 0x0165, &[], &[], &Writer::new().u32(handle).finish())
}

/// The handles of loaded objects, of which a TPM has a few.
pub(crate) fn loaded() -> Request {
    const HANDLES: u32 = 1;
    const FIRST_LOADED: u32 = 0x8000_0000;
    let parameters = Writer::new().u32(HANDLES).u32(FIRST_LOADED).u32(LOADED_MAX).finish();
    Request::new("GetCapability", 0x017a, &[], &[], &parameters)
}

pub(crate) fn nv_size(index: u32) -> Request {
    Request::new("NV_ReadPublic", 0x0169, &[index], &[], &[])
}

pub(crate) fn nv_read(index: u32, offset: u16, count: u16) -> Request {
    let parameters = Writer::new().u16(count).u16(offset).finish();
    Request::new("NV_Read", 0x014e, &[index, index], &[PASSWORD], &parameters)
}

/// Of PCR_Read: the register that was asked for, or none where the TPM has no such bank.
pub(crate) fn digest_read(response: &Response) -> Result<Digest, Malformed> {
    let mut reader = Reader::new(&response.parameters, "register");
    let _updates = reader.u32()?;
    if reader.u32()? != 1 || reader.u16()? != ALG_SHA256 {
        return Err(reader.malformed());
    }
    let bits = reader.u8()?;
    reader.bytes(usize::from(bits))?;
    if reader.u32()? != 1 {
        return Err(reader.malformed());
    }
    let digest = reader.sized()?.try_into().map_err(|_| reader.malformed())?;
    reader.finish()?;
    Ok(digest)
}

/// Of CreatePrimary: the public area. What follows (creation data and ticket, the name) is not needed.
pub(crate) fn public_made(response: &Response) -> Result<Vec<u8>, Malformed> {
    Reader::new(&response.parameters, "new key").sized().map(<[u8]>::to_vec)
}

/// Of Quote: statement and signature.
pub(crate) fn quote_made(response: &Response) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    let mut reader = Reader::new(&response.parameters, "quote");
    let statement = reader.sized()?.to_vec();
    Ok((statement, reader.rest().to_vec()))
}

/// Of ActivateCredential and NV_Read: a buffer and nothing else.
pub(crate) fn bytes_found(response: &Response) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(&response.parameters, "buffer");
    let bytes = reader.sized()?.to_vec();
    reader.finish()?;
    Ok(bytes)
}

/// Of GetCapability: the handles.
pub(crate) fn handles_found(response: &Response) -> Result<Vec<u32>, Malformed> {
    let mut reader = Reader::new(&response.parameters, "handles");
    let (_more, _capability, count) = (reader.u8()?, reader.u32()?, reader.u32()?);
    if count > LOADED_MAX {
        return Err(reader.malformed());
    }
    let handles = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(handles)
}

/// Of NV_ReadPublic: how much the index holds.
pub(crate) fn size_found(response: &Response) -> Result<u16, Malformed> {
    let mut reader = Reader::new(&response.parameters, "index");
    let mut public = Reader::new(reader.sized()?, "index");
    let (_index, _algorithm, _attributes) = (public.u32()?, public.u16()?, public.u32()?);
    public.sized()?;
    public.u16()
}

#[cfg(test)]
mod tests {
    use super::*;
    use attestation::{attestation_template, endorsement_template};
    use proptest::prelude::*;
    use tpm2_protocol::data::TpmCc;
    use tpm2_protocol::frame::{TpmCommand, TpmResponse};

    fn every_request() -> Vec<Request> {
        let credential = Credential {
            object: Writer::new().sized(&[1; 32]).bytes(&[2; 34]).finish(),
            seed: Writer::new().sized(&[3; 32]).sized(&[4; 32]).finish(),
        };
        vec![
            extend(attestation::WIPES, &[5; 32]),
            read(Register::IMAGE),
            create_primary(&endorsement_template()),
            create_primary(&attestation_template()),
            quote(0x8000_0000, &[6; 32]),
            start_policy_session(),
            policy_secret(0x0300_0000),
            activate_credential(0x8000_0000, 0x8000_0001, 0x0300_0000, &credential),
            flush(0x8000_0000),
            loaded(),
            nv_size(0x01c0_000a),
            nv_read(0x01c0_000a, 0, 512),
        ]
    }

    /// Another implementation of the same tables takes every command apart and finds nothing missing or left over.
    #[test]
    fn every_command_is_one_by_another_implementation() {
        for request in every_request() {
            let command =
                TpmCommand::cast(&request.bytes).unwrap_or_else(|e| panic!("{}: {e:?}", request.name));
            command.validate().unwrap_or_else(|e| panic!("{}: {e:?}", request.name));
        }
    }

    /// What it takes for an answer to PCR_Read is one here, and says the same.
    #[test]
    fn an_answer_is_one_by_another_implementation() {
        let parameters =
            Writer::new().u32(7).bytes(&selection_of(Register::IMAGE)).u32(1).sized(&[9; 32]).finish();
        let bytes = Writer::new()
            .u16(WITHOUT_SESSIONS)
            .bytes(&length(HEADER_BYTES + parameters.len()))
            .u32(0)
            .bytes(&parameters)
            .finish();
        TpmResponse::cast(&bytes).unwrap().validate(TpmCc::PcrRead).unwrap();
        let Ok(Answer::Done(response)) = read(Register::IMAGE).answer(&bytes) else { panic!("no answer") };
        assert_eq!(digest_read(&response), Ok([9; 32]));
    }

    #[test]
    fn a_busy_tpm_is_asked_again_and_a_refusal_is_none() {
        let code = |code: u32| {
            let bytes = Writer::new().u16(WITHOUT_SESSIONS).u32(10).u32(code).finish();
            flush(1).answer(&bytes).unwrap()
        };
        assert_eq!(code(0x922), Answer::Again);
        assert_eq!(code(0x9a2), Answer::Refused(0x9a2));
        assert!(crate::advice(0x9a2).contains("password") && crate::advice(0x98e).contains("password"));
        assert!(matches!(code(0), Answer::Done(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// Whatever a TPM answers: a value or an error.
        #[test]
        fn answers_are_taken_apart_without_a_panic(
            tag in prop_oneof![Just(WITHOUT_SESSIONS), Just(WITH_SESSIONS), any::<u16>()],
            body in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(32), any::<u8>()], 0..200),
        ) {
            let bytes = Writer::new().u16(tag).bytes(&length(6 + body.len())).bytes(&body).finish();
            for request in every_request() {
                if let Ok(Answer::Done(response)) = request.answer(&bytes) {
                    let _ = (digest_read(&response), public_made(&response), quote_made(&response));
                    let _ = (bytes_found(&response), size_found(&response), handles_found(&response));
                }
            }
        }
    }
}
