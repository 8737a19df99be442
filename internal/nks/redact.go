package nks

import (
	"fmt"
	"io"
)

const redacted = "nks.Material(redacted)"

// Format prints a fixed text for every verb.
func (Material) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// String returns a fixed text.
func (Material) String() string { return redacted }

// GoString returns a fixed text.
func (Material) GoString() string { return redacted }

// MarshalText returns a fixed text.
func (Material) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns a fixed text, as a JSON string.
func (Material) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Format prints the name of the KEK and the length of the ciphertext, never its
// bytes: under an inline KEK they are as good as the key. That holds for a Wrapped
// that fmt reaches through exported fields, slices and pointers.
func (w Wrapped) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "{KEK:%q Ciphertext:%d bytes}", w.KEK, len(w.Ciphertext))
}

// Format prints what a Nomad says of the key, and nothing of the key.
func (n Nomad) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "{ID:%s Provider:%q Inline:%t}", formatID(n.ID), n.Provider, n.Inline())
}
