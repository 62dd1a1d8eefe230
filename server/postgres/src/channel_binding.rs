//! What a log-in by SCRAM is bound to: the hash of the server's certificate, `tls-server-end-point` (RFC 5929, section 4.1).
//!
//! The hash function is that of the certificate's own signature, so this reads as much of the certificate's DER as is needed to
//! find it. It deliberately verifies nothing: `tls` has done so.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// 1.2.840.113549.1.1: RSA with a hash function.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4: ECDSA with a hash function.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];

/// The hash; None where the signature does not name one hash function (Ed25519, RSASSA-PSS), for which no binding is defined
/// that PostgreSQL could share.
pub(crate) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_algorithm(certificate)?;
    Some(match (algorithm.strip_prefix(RSA), algorithm.strip_prefix(ECDSA)) {
        // MD5 and SHA-1 are replaced by SHA-256, the RFC says.
        (Some([0x04 | 0x05 | 0x0b]), _) | (_, Some([0x01] | [0x03, 0x02])) => Sha256::digest(certificate).to_vec(),
        (Some([0x0e]), _) | (_, Some([0x03, 0x01])) => Sha224::digest(certificate).to_vec(),
        (Some([0x0c]), _) | (_, Some([0x03, 0x03])) => Sha384::digest(certificate).to_vec(),
        (Some([0x0d]), _) | (_, Some([0x03, 0x04])) => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { algorithm OBJECT IDENTIFIER, … }, … }`
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (fields, _) = value(certificate, SEQUENCE)?;
    let (_to_be_signed, rest) = value(fields, SEQUENCE)?;
    let (algorithm, _) = value(rest, SEQUENCE)?;
    Some(value(algorithm, OBJECT_IDENTIFIER)?.0)
}

/// The contents of a value with this tag, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let short = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(server_end_point(&short), Some(Sha256::digest(&short).to_vec()));
        let long = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(server_end_point(&long), Some(Sha384::digest(&long).to_vec()));
        assert_eq!(server_end_point(&certificate(&PKCS_ED25519)), None);
    }

    proptest! {
        #[test]
        fn damaged_certificates_never_panic(at in 0_usize..400, byte: u8, length in 0_usize..500) {
            let mut damaged = certificate(&PKCS_ECDSA_P256_SHA256);
            if let Some(place) = damaged.get_mut(at) {
                *place = byte;
            }
            damaged.truncate(length);
            server_end_point(&damaged);
        }
    }
}
