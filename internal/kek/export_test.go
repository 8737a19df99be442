package kek

// LocalKEK is a KEK that needs no answer from elsewhere.
type LocalKEK struct{ KEK }

func (LocalKEK) unwraps() bool { return true }

// First is the KEK for files of version 1.
func First(k KEK) KEK { return k.(evolved).first() }

// SetArgon2 has the KEK of a passphrase derive with another function.
func SetArgon2(k KEK, f func(passphrase, salt []byte, time, memory uint32, threads uint8, size uint32) []byte) {
	k.(*passphraseKEK).deriver.argon2 = f
}

// Argon2Of is that function.
func Argon2Of(k KEK) func(passphrase, salt []byte, time, memory uint32, threads uint8, size uint32) []byte {
	return k.(*passphraseKEK).deriver.argon2
}

// ReadBound reads what an age file has in it.
var ReadBound = readBound

// Bound is what an age file has in it.
func Bound(plaintext, aad []byte) []byte {
	b := boundTo(aad)
	return append(b[:], plaintext...)
}
