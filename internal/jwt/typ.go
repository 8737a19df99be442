package jwt

import (
	"errors"
	"fmt"
	"strings"
)

// JWT is the typ of a token for which no other was asked.
const JWT = "JWT"

// maxType is the length in bytes of the longest typ that is written or expected.
const maxType = 127

var errTypeForm = errors.New("not a media type, with or without application/, of at most 127 bytes")

// Type returns a typ as it is written: a media type without "application/" where nothing else tells that it is one (RFC
// 7515, section 4.1.9). Empty is JWT. It is an error if the typ is no media type, or has parameters.
func Type(typ string) (string, error) {
	if typ == "" {
		return JWT, nil
	}
	begins, slashes := true, 0 // RFC 6838, section 4.2
	for _, c := range []byte(typ) {
		switch {
		case isLetter(c), '0' <= c && c <= '9':
			begins = false
		case begins:
			return "", errTypeForm
		case c == '/' && slashes == 0:
			begins, slashes = true, 1
		case strings.IndexByte("!#$&-^_.+", c) < 0:
			return "", errTypeForm
		}
	}
	if begins || len(typ) > maxType {
		return "", errTypeForm
	}
	return short(typ), nil
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// short leaves out "application/".
func short(typ string) string {
	const application = "application/"
	if len(typ) > len(application) && equalFold(typ[:len(application)], application) && strings.IndexByte(typ[len(application):], '/') < 0 {
		return typ[len(application):]
	}
	return typ
}

// equalFold compares without case, of ASCII alone: strings.EqualFold takes other letters for s and k.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if a[i] != b[i] && (a[i]^b[i] != 0x20 || !isLetter(a[i])) {
			return false
		}
	}
	return true
}

// checkType compares the typ of a header, which may be missing, with one that Type has returned, or with none.
func checkType(got string, present bool, want string) error {
	switch {
	case want == "" && (!present || equalFold(short(got), JWT)), want != "" && present && equalFold(short(got), want):
		return nil
	case !present:
		return fmt.Errorf("no typ, want %q", want)
	}
	if want == "" {
		want = JWT
	}
	return fmt.Errorf("typ %.127q, want %q", got, want)
}
