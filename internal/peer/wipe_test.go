package peer

import (
	"bytes"
	"errors"
	"testing"
)

// This is in the package because a caller that gets the error has no way to the memory.
func TestMaterialOpenedBeforeAnErrorIsWiped(t *testing.T) {
	var opened [][]byte
	open := func(aad, sealed []byte) ([]byte, error) {
		if len(opened) == 2 {
			return nil, errors.New("does not authenticate")
		}
		opened = append(opened, bytes.Clone(sealed))
		return opened[len(opened)-1], nil
	}
	keys := []SealedKey{{Sealed: []byte("one")}, {Sealed: []byte("two")}, {Sealed: []byte("bad")}}
	if got, err := openAll(keys, open); got != nil || err != ErrOpen {
		t.Fatalf("%v, %v, want ErrOpen", got, err)
	}
	for _, b := range opened {
		if !bytes.Equal(b, []byte{0, 0, 0}) {
			t.Errorf("%q is left", b)
		}
	}
}
