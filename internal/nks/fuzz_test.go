package nks_test

import (
	"bytes"
	"errors"
	"testing"

	"example.com/keyring/internal/nks"
)

// FuzzDecodeFile tries each input as it is and under a Sum that fits, so that the
// fuzzer gets past the Sum.
func FuzzDecodeFile(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.Text)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, resum(b)} {
			file, err := nks.DecodeFile(b)
			if err != nil {
				if !errors.Is(err, nks.ErrFormat) || file != nil {
					t.Fatalf("%v, %v", file, err)
				}
				continue
			}
			equal(t, "file", encode(t, file), b)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add([]byte(v.Material))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := nks.Decode(b)
		if err != nil {
			if !errors.Is(err, nks.ErrFormat) || m != nil {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		if !bytes.Equal(m.Encode(), b) {
			t.Fatal("read, but not what it would be written as")
		}
		m.Public("RS256") // must not panic
	})
}
