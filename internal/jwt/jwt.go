// Package jwt writes and reads the tokens of the keyring: compact JWS (RFC 7515) around a JSON object of claims (RFC
// 7519), and their public keys as a JWKS (RFC 7517). It is pure but for the randomness of an ECDSA signature: keys, the
// time and the policy are arguments.
//
// # How tokens are written
//
//	base64url(header) "." base64url(claims) "." base64url(signature)
//
// without padding. The header is exactly {"alg":"<algorithm>","kid":"<key ID>","typ":"<typ>"}. The typ is JWT, or
// the media type that was asked for, without "application/". The signature is RS256 with 2048 bits, ES256, or EdDSA with Ed25519, over the ASCII bytes
// before the second dot.
//
// # How tokens are read
//
// A token is refused before any of it is parsed if it
//
//   - is longer than 16 KiB,
//   - is not three parts with two dots: not compact, or encrypted,
//   - has a part that is empty or not canonical base64url: padded, with a line break or a space, or
//     with bits left over.
//
// A header that is, byte for byte, one that the keyring writes with typ JWT needs no parsing. Any other header is
// refused unless it
//
//   - is one JSON object with the members alg, kid and typ, the last of which may be missing,
//     each once, all strings without escapes: so there is no jwk, jku, x5u, x5c, crit or b64,
//   - has the typ that the caller expects: with or without "application/", in any case (RFC 7515, section 4.1.9).
//     If the caller expects none, that is JWT, and it may be missing,
//   - has the kid of a key and the alg of that key: the key decides the algorithm, never the token.
//
// If the header is then not, byte for byte, one that the keyring writes, go-jose parses the token and checks its
// signature. Claims are read only after the signature has been verified,
// so they come from a holder of the key. They must be one JSON object in UTF-8, nested at most 64 deep, with numbers in the range of a float64. No two members
// of an object have names that differ in case only, and no name differs from a registered one (iss, sub, aud, exp,
// nbf, iat, jti) in case only. The registered claims have the types of RFC 7519.
package jwt

import (
	"encoding/base64"
	"errors"
	"strings"

	"example.com/keyring/internal/strictjson"
	"github.com/go-jose/go-jose/v3"
)

// MaxToken is the length in bytes of the longest token that is read or written.
const MaxToken = 16 << 10

// Why a token is refused. No error reveals more than the token and the public keys do.
var (
	ErrUnknownKey = errors.New("unknown key")

	errForm      = errors.New("not a compact JWS of at most 16 KiB in canonical base64url")
	errHeader    = errors.New("header with a member that is unknown, missing, repeated or of the wrong type")
	errAlgorithm = errors.New("algorithm is not the key's")
	errSignature = errors.New("signature")
)

// Keys are the keys whose tokens are accepted.
type Keys interface {
	// WithHeader returns the key whose Header that is, or nil.
	WithHeader(encoded string) *Key
	// WithID returns the key that a kid names. If there is none, the error is ErrUnknownKey.
	WithID(kid string) (*Key, error)
}

// Open verifies the signature of a token, and returns its payload and the key that signed it. typ is one that Type has
// returned. Empty accepts JWT, and a token without a typ.
func Open(token string, keys Keys, typ string) ([]byte, *Key, error) {
	if len(token) > MaxToken {
		return nil, nil, errForm
	}
	header, rest, _ := strings.Cut(token, ".")
	payload64, signature64, _ := strings.Cut(rest, ".")
	payload, ok := decode(payload64)
	if !ok {
		return nil, nil, errForm
	}
	signature, ok := decode(signature64)
	if !ok {
		return nil, nil, errForm
	}
	var key *Key
	if typ == "" || typ == JWT {
		key = keys.WithHeader(header)
	}
	if key == nil {
		h, named, err := find(header, keys, typ)
		if err != nil {
			return nil, nil, err
		}
		if header != headerOf(h.kid, h.alg, h.typ) {
			return openForeign(token, h, named)
		}
		key = named
	}
	if !key.Check([]byte(token[:len(header)+1+len(payload64)]), signature) {
		return nil, nil, errSignature
	}
	return payload, key, nil
}

// find reads a header, and returns the key that it names.
func find(header64 string, keys Keys, typ string) (header, *Key, error) {
	b, ok := decode(header64)
	if !ok {
		return header{}, nil, errForm
	}
	h, err := parseHeader(b, typ)
	if err != nil {
		return header{}, nil, err
	}
	key, err := keys.WithID(h.kid)
	if err != nil {
		return header{}, nil, err
	}
	if h.alg != key.alg {
		return header{}, nil, errAlgorithm
	}
	return h, key, nil
}

// openForeign opens a token whose header is not one that the keyring writes.
func openForeign(token string, h header, key *Key) ([]byte, *Key, error) {
	parsed, err := jose.ParseSigned(token)
	if err != nil || len(parsed.Signatures) != 1 ||
		parsed.Signatures[0].Header.Algorithm != h.alg || parsed.Signatures[0].Header.KeyID != h.kid {
		return nil, nil, errForm
	}
	payload, err := parsed.Verify(key.public)
	if err != nil {
		return nil, nil, errSignature
	}
	return payload, key, nil
}

// header is the content of a header.
type header struct{ alg, kid, typ string }

func parseHeader(b []byte, typ string) (header, error) {
	var h header
	typed := false
	err := strictjson.Object(b, maxDepth, func(name, value []byte) error {
		if value[0] != '"' {
			return errHeader
		}
		text := string(value[1 : len(value)-1]) // escapes stay: no key ID, no algorithm and no typ has any
		switch string(name) {
		case "alg":
			h.alg = text
		case "kid":
			h.kid = text
		case "typ":
			h.typ, typed = text, true
		default:
			return errHeader
		}
		return nil
	})
	if err != nil {
		return header{}, errHeader
	}
	if err := checkType(h.typ, typed, typ); err != nil {
		return header{}, err
	}
	return h, nil
}

// strict refuses bits left over. Its decoder ignores line breaks all the same.
var strict = base64.RawURLEncoding.Strict()

// decode reads canonical base64url, which is not empty.
func decode(s string) ([]byte, bool) {
	if s == "" || strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\r') >= 0 {
		return nil, false
	}
	b, err := strict.DecodeString(s)
	return b, err == nil
}
