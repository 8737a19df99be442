package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// TestRewrapWritesNothingThatOnlyAnOldKEKOpens: the new KMS wraps and may not unwrap, and what
// hides it is the identity that is about to go back into the safe.
func TestRewrapWritesNothingThatOnlyAnOldKEKOpens(t *testing.T) {
	disk, identity, anew := keyringtest.NewDisk(), ageIdentity(t), newKMS("new")
	escrow := ageKEK(t, identity)
	plantKey(t, disk, keyring.KeyID{1}, newKMS("lost"), escrow)
	before := fmt.Sprint(keyFiles(disk))
	anew.Set(func(k *kms) { k.NoUnwrap = errBroken })
	s := openStore(t, disk, []keyring.KEK{anew, escrow}, []keyring.KEK{ageKEK(t, identity, identity)})
	if err := s.Rewrap(t.Context()); !errors.Is(err, errBroken) || s.OnOldKEKs() != 1 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("the file was replaced by one that the identity alone opens")
	}
}

// TestRewrapTakesTheFilesOfRemovedKeysAlong: the removal may be undone when the old KEK is gone.
func TestRewrapTakesTheFilesOfRemovedKeysAlong(t *testing.T) {
	disk, id, a, b := keyringtest.NewDisk(), keyring.KeyID{1}, newKMS("a"), newKMS("b")
	s := openStore(t, disk, []keyring.KEK{a}, nil)
	check, err := put(t, s, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(id), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, disk, []keyring.KEK{b}, []keyring.KEK{a})
	if n := s.OnOldKEKs(); n != 1 {
		t.Errorf("%d files are to be rewrapped", n)
	}
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d files left", err, s.OnOldKEKs())
	}
	s.Close()
	s = openStore(t, disk, []keyring.KEK{b}, nil)
	if err := s.TakeBack(t.Context(), id); err != nil || !s.Has(id, check) {
		t.Errorf("without the old KEK: %v", err)
	}
}

// put puts a key into a store and returns its check value.
func put(t testing.TB, s keyring.Store, id keyring.KeyID) ([32]byte, error) {
	t.Helper()
	m, err := nks.Generate("EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	return m.Check(id, "EdDSA"), s.Put(t.Context(), map[keyring.KeyID]*nks.Material{id: m})[id]
}

// TestNothingIsWrittenThatDoesNotOpen: such a file would be an orphan for ever.
func TestNothingIsWrittenThatDoesNotOpen(t *testing.T) {
	disk, a := keyringtest.NewDisk(), newKMS("a")
	s := openStore(t, disk, []keyring.KEK{a}, nil)
	a.Set(func(k *kms) { k.NoUnwrap = errBroken })
	if _, err := put(t, s, keyring.KeyID{1}); !errors.Is(err, errBroken) || len(keyFiles(disk)) > 0 {
		t.Errorf("%v, %d files", err, len(keyFiles(disk)))
	}
	a.Set(answers)
	if check, err := put(t, s, keyring.KeyID{1}); err != nil || !s.Has(keyring.KeyID{1}, check) {
		t.Errorf("when it unwraps again: %v", err)
	}
}

// TestArrivingKeyReplacesNoFileThatIsNotInMemory: it may be the way back, if it is under a KEK
// that is not configured or can't be read at the moment. One that is bad is set aside first.
func TestArrivingKeyReplacesNoFileThatIsNotInMemory(t *testing.T) {
	id := keyring.KeyID{1}
	name := nks.FileName(id)
	eio := func(op keyringtest.Op) keyringtest.Fault {
		if op.Name == name && (op.Kind == "open" || op.Kind == "read") {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	}
	for what, c := range map[string]struct {
		kek     keyring.KEK // nil for no key file
		late    bool        // it appears when the store is open
		fault   func(keyringtest.Op) keyringtest.Fault
		refused bool
		aside   string
	}{
		"locked":               {kek: newKMS("another"), refused: true},
		"locked, later":        {kek: newKMS("another"), late: true, refused: true},
		"good, later":          {kek: newKMS("a"), late: true, refused: true},
		"bad, later":           {late: true, aside: ".malformed-1"},
		"unreadable":           {kek: newKMS("a"), fault: eio, aside: ".unreadable-1"},
		"unreadable, and more": {kek: newKMS("another"), fault: eio, aside: ".unreadable-1"},
	} {
		t.Run(what, func(t *testing.T) {
			disk := keyringtest.NewDisk()
			plant := func() {
				if disk.Plant(name, 0o600, []byte("no key file")); c.kek != nil {
					plantKey(t, disk, id, c.kek)
				}
			}
			if !c.late {
				plant()
			}
			var mu sync.Mutex // guards fault
			fault := c.fault
			disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if op.Kind == "rename" && (op.Name == name || op.To == name) {
					fault = nil // what comes now can be read
				}
				if fault == nil {
					return keyringtest.Fault{}
				}
				return fault(op)
			})
			s := openStore(t, disk, []keyring.KEK{newKMS("a")}, nil)
			if c.late {
				plant()
			}
			before := disk.Bytes(name)
			_, err := put(t, s, id)
			if c.refused {
				if err == nil || !bytes.Equal(disk.Bytes(name), before) {
					t.Errorf("it was replaced: %v", err)
				}
				return
			}
			if err != nil || !s.Confirm(id) {
				t.Errorf("not written: %v", err)
			}
			if !bytes.Equal(disk.Bytes(name+c.aside), before) {
				t.Errorf("what was there is not set aside: %v", disk.Names())
			}
		})
	}
}

// TestArrivingKeyReplacesNoOtherOfItsID: what is in memory may be an old backup's, of which nobody else
// has a copy.
func TestArrivingKeyReplacesNoOtherOfItsID(t *testing.T) {
	disk, id := keyringtest.NewDisk(), keyring.KeyID{1}
	name := nks.FileName(id)
	s := openStore(t, disk, []keyring.KEK{newKMS("a")}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	before := disk.Bytes(name)
	check, err := put(t, s, id) // put draws another secret
	if err != nil || !s.Has(id, check) || !s.Confirm(id) {
		t.Errorf("not written: %v", err)
	}
	if before == nil || !bytes.Equal(disk.Bytes(name+".wrong-1"), before) {
		t.Errorf("what was there is not set aside: %v", disk.Names())
	}
}

// TestFollowerWhoseKEKIsAwayIsNoHolder in a rotation: the others go on, it is named, holds
// nothing, starts again, and catches up when the KEK answers.
func TestFollowerWhoseKEKIsAwayIsNoHolder(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*kms){
		"fails": away["fails"], "hangs": away["hangs"],
		"wraps, and does not unwrap": func(k *kms) { k.NoUnwrap = errBroken },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keks := map[string]*kms{"s1": newKMS("k1"), "s2": newKMS("k2"), "s3": newKMS("k3")}
				c := newCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
					cfg.KEKs = []keyring.KEK{keks[string(s.ID)]}
				}})
				leader := ready(t, c)
				keyring.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
				f := follower(c)
				kek := keks[string(f.ID)]
				kek.Set(fail)
				key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				check := func(when string) {
					t.Helper()
					time.Sleep(10 * time.Minute) // virtual
					if keyring.Ring(f.FSM).Key(key.ID).HeldBy(string(f.ID)) || f.Disk.Bytes(nks.FileName(key.ID)) != nil {
						t.Errorf("%s: it is a holder, or has a file", when)
					}
					if st, err := f.Keyring.Status(t.Context()); err != nil || !named(st, kek.Name) || st.Ready || len(st.Missing) == 0 {
						t.Errorf("%s: %v, %v", when, st.Problems, err)
					}
				}
				check("while it runs")
				c.Restart(f)
				check("restarted")
				kek.Set(answers)
				keyring.AwaitHolders(f.Keyring, key.ID, 3)
				time.Sleep(time.Minute) // virtual
				if st, err := f.Keyring.Status(t.Context()); err != nil || !st.Ready || len(st.Problems) > 0 {
					t.Errorf("when it answers: %v, %v", st.Problems, err)
				}
			})
		})
	}
}

// TestRotationUnderAKEKThatDoesNotUnwrapLeavesNoOrphan, however often the leader tries.
func TestRotationUnderAKEKThatDoesNotUnwrapLeavesNoOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newKMS("a")
		l := newLone(t, a)
		sealed := l.seal("data")
		a.Set(func(k *kms) { k.NoUnwrap = errBroken })
		for range 3 {
			if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "KEK a") {
				t.Errorf("rotate: %v", err)
			}
		}
		if st := l.status(); len(keyFiles(l.Disk)) != 1 || !named(st, "a") {
			t.Errorf("%d files, %v", len(keyFiles(l.Disk)), st.Problems)
		}
		a.Set(answers)
		if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("right after it unwraps again: %v", err)
		}
		if st := l.status(); named(st, "a") {
			t.Errorf("it has just wrapped and unwrapped: %v", st.Problems)
		}
		l.opens(sealed)
		if st := l.status(); len(st.Problems) > 0 {
			t.Errorf("what is over is still a problem: %v", st.Problems)
		}
	})
}

// TestServerWhoseKEKIsLostFetchesAllAnew if its keystore is moved away, under any other KEK.
func TestServerWhoseKEKIsLostFetchesAllAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keks := map[string]*kms{"s1": newKMS("k1"), "s2": newKMS("k2"), "s3": newKMS("k3")}
		c := newCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			cfg.KEKs = []keyring.KEK{keks[string(s.ID)]}
		}})
		leader := ready(t, c)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		f := follower(c)
		keks[string(f.ID)] = newKMS("new")
		f.Disk = keyringtest.NewDisk()
		c.Restart(f)
		time.Sleep(time.Minute) // virtual
		if got, err := f.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("%q, %v", got, err)
		}
		if st, err := f.Keyring.Status(t.Context()); err != nil || !st.Ready || st.OnOldKEKs > 0 || len(st.Problems) > 0 {
			t.Errorf("%v, %v", st.Problems, err)
		}
	})
}

// TestKeyIsHeldWhileItsFileIsReplaced: a live question that comes in the middle of a rewrap has a
// yes for its answer, or the key would be taken for lost.
func TestKeyIsHeldWhileItsFileIsReplaced(t *testing.T) {
	id := keyring.KeyID{1}
	for range 50 {
		disk, a := keyringtest.NewDisk(), newKMS("a")
		plantKey(t, disk, id, a)
		s := openStore(t, disk, []keyring.KEK{newKMS("b")}, []keyring.KEK{a})
		looked, held := make(chan struct{}), make(chan bool, 1)
		var once, look sync.Once
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			switch {
			case op.Kind == "dirsync": // renamed, and not read back
				once.Do(func() {
					go func() { held <- s.Confirm(id) }()
					<-looked
				})
			case op.Kind == "close" && op.Name == nks.FileName(id):
				look.Do(func() { close(looked) })
			}
			return keyringtest.Fault{}
		})
		if err := s.Rewrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !<-held || !s.Confirm(id) {
			t.Fatal("it is not held")
		}
		s.Close()
	}
}

// TestKeyThatCouldNotBeWrittenIsOverwritten in memory, where it was already proven to open.
func TestKeyThatCouldNotBeWrittenIsOverwritten(t *testing.T) {
	for _, kind := range []string{"create", "write", "sync", "rename", "open"} {
		disk := keyringtest.NewDisk()
		s := openStore(t, disk, []keyring.KEK{keyring.InlineKEK()}, nil)
		live, err := s.PutLive(t.Context(), keyring.KeyID{1}, newMaterial())
		if err != nil || zero(live[0]) || zero(live[1]) {
			t.Fatalf("a key that is held: %v, %v", live, err)
		}
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == kind {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		live, err = s.PutLive(t.Context(), keyring.KeyID{2}, newMaterial())
		if err == nil || !zero(live[0]) || !zero(live[1]) {
			t.Errorf("%s fails: %v, and the key is left in memory", kind, err)
		}
	}
}

// TestSignerOfAKeyThatIsDroppedIsWiped: the key goes while its signing key is being parsed, at one moment or another.
func TestSignerOfAKeyThatIsDroppedIsWiped(t *testing.T) {
	m, err := nks.Generate("RS256")
	if err != nil {
		t.Fatal(err)
	}
	kek, id, disk := keyring.InlineKEK(), keyring.KeyID{1}, keyringtest.NewDisk()
	file := nks.File{ID: id, Algorithm: "RS256", Check: m.Check(id, "RS256"), Created: time.Now().UTC()}
	wrapped, err := kek.Wrap(t.Context(), m.Encode(), file.AAD())
	if err != nil {
		t.Fatal(err)
	}
	file.Wrapped = []nks.Wrapped{{KEK: kek.ID(), Ciphertext: wrapped}}
	b, err := file.Encode()
	if err != nil {
		t.Fatal(err)
	}
	disk.Plant(nks.FileName(id), 0o600, b)
	s := openStore(t, disk, []keyring.KEK{kek}, nil)
	for i := range 100 {
		type signed struct {
			by  *jwt.Signer
			err error
		}
		begun, done := make(chan time.Time, 1), make(chan signed, 1)
		go func() {
			begun <- time.Now()
			by, err := s.Signer(id)
			done <- signed{by, err}
		}()
		for start := <-begun; time.Since(start) < time.Duration(i)*5*time.Microsecond; {
		}
		s.Drop(id)
		r := <-done
		if r.err == nil {
			_, r.err = r.by.Sign([]byte("{}"))
		}
		if !errors.Is(r.err, jwt.ErrWiped) {
			t.Fatalf("dropped after %d µs: %v", 5*i, r.err)
		}
		if err := s.TakeBack(t.Context(), id); err != nil { // reads it again
			t.Fatal(err)
		}
	}
}
