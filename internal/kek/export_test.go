package kek

// LocalKEK is a KEK that needs no answer from elsewhere.
type LocalKEK struct{ KEK }

func (LocalKEK) unwraps() bool { return true }

// ReadBound reads what an age file has in it.
var ReadBound = readBound

// Bound is what an age file has in it.
func Bound(plaintext, aad []byte) []byte {
	b := boundTo(aad)
	return append(b[:], plaintext...)
}
