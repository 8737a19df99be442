package keystore_test

import (
	"errors"
	"testing"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestSignerOfAKeyThatIsDroppedIsWiped: the key goes while its signing key is being parsed, at one moment or another.
func TestSignerOfAKeyThatIsDroppedIsWiped(t *testing.T) {
	m, err := nks.Generate("RS256")
	if err != nil {
		t.Fatal(err)
	}
	inline, id, disk := kek.Inline(), meta.KeyID{1}, keyringtest.NewDisk()
	file := nks.File{ID: id, Algorithm: "RS256", Check: m.Check(id, "RS256"), Created: time.Now().UTC()}
	wrapped, err := inline.Wrap(t.Context(), m.Encode(), file.AAD())
	if err != nil {
		t.Fatal(err)
	}
	file.Wrapped = []nks.Wrapped{{KEK: inline.ID(), Ciphertext: wrapped}}
	b, err := file.Encode()
	if err != nil {
		t.Fatal(err)
	}
	disk.Plant(nks.FileName(id), 0o600, b)
	s := openStore(t, disk, []kek.KEK{inline}, nil)
	for i := range 100 {
		type signed struct {
			by  *jwt.Signer
			err error
		}
		begun, done := make(chan time.Time, 1), make(chan signed, 1)
		go func() {
			begun <- time.Now()
			by, err := s.Signer(id, file.Check)
			done <- signed{by, err}
		}()
		for start := <-begun; time.Since(start) < time.Duration(i)*5*time.Microsecond; {
		}
		s.Drop(id)
		r := <-done
		if r.err == nil {
			_, r.err = r.by.Sign(jwt.JWT, []byte("{}"))
		}
		if !errors.Is(r.err, jwt.ErrWiped) {
			t.Fatalf("dropped after %d µs: %v", 5*i, r.err)
		}
		if err := s.TakeBack(t.Context(), id); err != nil { // reads it again
			t.Fatal(err)
		}
	}
}
