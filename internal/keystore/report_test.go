package keystore_test

import (
	"bytes"
	"testing"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// TestUnknownMissesNoKeyThatOpens: a file whose KEK answers again while it is asked which keys the ring does not know is
// among those that wait or among those that open.
func TestUnknownMissesNoKeyThatOpens(t *testing.T) {
	const open = 50 // so that to describe them takes a while
	for range 20 {
		disk := keyringtest.NewDisk()
		down := kektest.NewDown("kms")
		for i := range open {
			plantKey(t, disk, meta.KeyID{1, byte(i)}, kek.Inline())
		}
		waits := kektest.New("kms")
		plantKey(t, disk, meta.KeyID{2}, waits)
		s := openStore(t, disk, []kek.KEK{kek.Inline(), down}, nil)
		healed := make(chan error, 1)
		down.Set(kektest.Answers)
		go func() {
			s.keks.Probe(t.Context())
			healed <- s.Heal(t.Context(), &meta.Ring{}, nil, nil)
		}()
		for done := false; !done; {
			select {
			case err := <-healed:
				if done = true; err != nil {
					t.Fatal(err)
				}
			default:
				time.Sleep(10 * time.Microsecond)
			}
			if u, w := s.Unknown(&meta.Ring{}, 100); len(u.Orphans)+w.Files != open+1 || w.Of != open+1 {
				t.Fatalf("%d keys open and %d files wait, of %d; want %d together", len(u.Orphans), w.Files, w.Of, open+1)
			}
		}
	}
}

// TestUnknownDerivesAPublicKeyOnce: every hello asks for the unknown keys, and there may be thousands.
func TestUnknownDerivesAPublicKeyOnce(t *testing.T) {
	disk := keyringtest.NewDisk()
	id := meta.KeyID{1}
	plantKey(t, disk, id, kek.Inline())
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	for range 2 {
		u, _ := s.Unknown(&meta.Ring{}, 100)
		if len(u.Orphans) != 1 || len(u.Orphans[0].Public) == 0 {
			t.Fatalf("orphans %v", u.Orphans)
		}
		if public, derived := s.Public(&meta.Key{ID: id, Check: u.Orphans[0].Check}); derived || !bytes.Equal(public, u.Orphans[0].Public) {
			t.Errorf("derived again: %v, %x and %x", derived, public, u.Orphans[0].Public)
		}
	}
}
