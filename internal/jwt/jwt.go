// Package jwt is the tokens of the keyring: compact JWS (RFC 7515) around a JSON object of
// claims (RFC 7519). It is pure but for the randomness of an ECDSA signature: keys, the time
// and the policy are arguments.
//
// # What is written
//
//	base64url(header) "." base64url(claims) "." base64url(signature)
//
// without padding. The header is exactly {"alg":"<algorithm>","kid":"<key ID>","typ":"JWT"}.
// The signature is RS256 with 2048 bits, ES256, or EdDSA with Ed25519, over the ASCII bytes
// before the second dot.
//
// # What is read
//
// A token is refused before any of it is parsed if it
//
//   - is longer than 16 KiB,
//   - is not three parts with two dots: not compact, or encrypted,
//   - has a part that is not canonical base64url: padded, with a line break or a space, with
//     bits left over, or empty, the header and the payload being JSON and no signature empty.
//
// A header that is, byte for byte, one that the keyring writes needs no parsing. Any other is
// refused unless it
//
//   - is one JSON object with the members alg, kid and typ, the last of which may be missing,
//     each once, all strings without escapes: so there is no jwk, jku, x5u, x5c, crit or b64,
//   - has the typ JWT, in any case, if it has one,
//   - has the kid of a key and that key's alg: the algorithm is the key's, never the token's.
//
// Then go-jose parses it and checks its signature. Claims are looked at once the signature is
// right, and so are not a stranger's any more: they must be one JSON object in UTF-8, nested
// 64 deep at most, in which no two members of an object have names that are equal but for
// case, nor one that is a registered name (iss, sub, aud, exp, nbf, iat, jti) but for case; and
// the registered ones are of the types that RFC 7519 gives them.
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

// Why a token is refused. None of them says more than the token and the public keys do.
var (
	ErrUnknownKey = errors.New("unknown key")

	errForm      = errors.New("not a compact JWS of at most 16 KiB in canonical base64url")
	errHeader    = errors.New("header with a member that is unknown, missing, repeated or of the wrong type")
	errAlgorithm = errors.New("algorithm is not the key's")
	errSignature = errors.New("signature")
)

// Keys are the keys whose tokens are taken.
type Keys interface {
	// WithHeader returns the key whose Header that is, or nil.
	WithHeader(encoded string) *Key
	// WithID returns the key that a kid names. The error for one that is not there is
	// ErrUnknownKey.
	WithID(kid string) (*Key, error)
}

// Open returns the payload of a token whose signature is right, and the key it is of.
func Open(token string, keys Keys) ([]byte, *Key, error) {
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
	key := keys.WithHeader(header)
	if key == nil {
		return openForeign(token, header, keys)
	}
	if !key.Check([]byte(token[:len(header)+1+len(payload64)]), signature) {
		return nil, nil, errSignature
	}
	return payload, key, nil
}

// openForeign opens a token whose header is not one that the keyring writes.
func openForeign(token, header64 string, keys Keys) ([]byte, *Key, error) {
	b, ok := decode(header64)
	if !ok {
		return nil, nil, errForm
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, nil, err
	}
	key, err := keys.WithID(h.kid)
	if err != nil {
		return nil, nil, err
	}
	if h.alg != key.alg {
		return nil, nil, errAlgorithm
	}
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

// header is what a header says.
type header struct{ alg, kid string }

func parseHeader(b []byte) (header, error) {
	var h header
	err := strictjson.Object(b, maxDepth, func(name, value []byte) error {
		if value[0] != '"' {
			return errHeader
		}
		text := string(value[1 : len(value)-1]) // with its escapes: no key and no algorithm has any
		switch string(name) {
		case "alg":
			h.alg = text
		case "kid":
			h.kid = text
		case "typ":
			if !strings.EqualFold(text, "JWT") {
				return errHeader
			}
		default:
			return errHeader
		}
		return nil
	})
	if err != nil {
		return header{}, errHeader
	}
	return h, nil
}

// strict refuses bits left over. The decoder passes over line breaks all the same.
var strict = base64.RawURLEncoding.Strict()

// decode reads canonical base64url that is not empty.
func decode(s string) ([]byte, bool) {
	if s == "" || strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\r') >= 0 {
		return nil, false
	}
	b, err := strict.DecodeString(s)
	return b, err == nil
}
