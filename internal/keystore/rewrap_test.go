package keystore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestRewrapWritesNothingThatOnlyAnOldKEKOpens: the new KMS wraps and may not unwrap, and what
// hides it is the identity that is about to go back into the safe.
func TestRewrapWritesNothingThatOnlyAnOldKEKOpens(t *testing.T) {
	disk, identity, fresh := keyringtest.NewDisk(), ageIdentity(t), newKMS("new")
	escrow := ageKEK(t, identity)
	plantKey(t, disk, meta.KeyID{1}, newKMS("lost"), escrow)
	before := fmt.Sprint(keyFiles(disk))
	fresh.Set(func(k *kms) { k.NoUnwrap = errBroken })
	s := openStore(t, disk, []kek.KEK{fresh, escrow}, []kek.KEK{ageKEK(t, identity, identity)})
	s.VouchFor(meta.KeyID{1})
	if err := s.Rewrap(t.Context()); !errors.Is(err, errBroken) || s.OnOldKEKs() != 1 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("the file was replaced by one that the identity alone opens")
	}
}

// TestRewrapTakesTheFilesOfRemovedKeysAlong: the removal may be undone when the old KEK is gone.
func TestRewrapTakesTheFilesOfRemovedKeysAlong(t *testing.T) {
	disk, id, a, b := keyringtest.NewDisk(), meta.KeyID{1}, newKMS("a"), newKMS("b")
	s := openStore(t, disk, []kek.KEK{a}, nil)
	check, err := put(t, s, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(id), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
	if n := s.OnOldKEKs(); n != 1 {
		t.Errorf("%d files are to be rewrapped", n)
	}
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d files left", err, s.OnOldKEKs())
	}
	s.Close()
	s = openStore(t, disk, []kek.KEK{b}, nil)
	if err := s.TakeBack(t.Context(), id); err != nil || !s.Has(id, check) {
		t.Errorf("without the old KEK: %v", err)
	}
}

// TestKeyIsHeldWhileItsFileIsReplaced: a live question that comes in the middle of a rewrap has a
// yes for its answer, or the key would be taken for lost.
func TestKeyIsHeldWhileItsFileIsReplaced(t *testing.T) {
	id := meta.KeyID{1}
	for range 50 {
		disk, a := keyringtest.NewDisk(), newKMS("a")
		plantKey(t, disk, id, a)
		s := openStore(t, disk, []kek.KEK{newKMS("b")}, []kek.KEK{a})
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

// TestEscrowIsTheWayBack: the KMS is gone for good. The stolen or saved directory opens
// nothing by itself, and everything with the offline identity, which moves it to a new KEK.
func TestEscrowIsTheWayBack(t *testing.T) {
	disk, dead, identity := keyringtest.NewDisk(), newKMS("kms"), ageIdentity(t)
	dead.Inner = fileKEK(t, countingKey())
	id := meta.KeyID{1}
	plantKey(t, disk, id, dead, ageKEK(t, identity))
	before := fmt.Sprint(keyFiles(disk))

	next := fileKEK(t, bytes.Repeat([]byte{9}, 32))
	for name, thief := range map[string][]kek.KEK{
		"no KEK": nil, "escrow without its identity": {ageKEK(t, identity)}, "another identity": {ageKEK(t, identity, ageIdentity(t))},
	} {
		s := openStore(t, disk, []kek.KEK{next}, thief)
		if s.Confirm(id) || s.OnOldKEKs() != 1 || s.Rewrap(t.Context()) == nil {
			t.Errorf("%s: it opens", name)
		}
		s.Close()
	}
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("a file was touched")
	}

	s := openStore(t, disk, []kek.KEK{next}, []kek.KEK{ageKEK(t, identity, identity)})
	if !s.Confirm(id) || s.OnOldKEKs() != 1 {
		t.Error("it does not open with the identity")
	}
	if err := s.Rewrap(t.Context()); err == nil || !strings.Contains(err.Error(), "adopt the key first") {
		t.Errorf("rewrapped, and anybody may have made it: %v", err)
	}
	s.VouchFor(id)
	if err := s.Rewrap(t.Context()); err != nil || !s.Confirm(id) || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	s.Close()
	if s = openStore(t, disk, []kek.KEK{next}, nil); !s.Confirm(id) {
		t.Error("it does not open under the new KEK alone")
	}
}

// TestFileThatNoPresentKEKOpensIsOnOldKEKs, also if the names in it are those of the present
// ones: the KMS was destroyed and set up again under its name, and escrow opens the files.
func TestFileThatNoPresentKEKOpensIsOnOldKEKs(t *testing.T) {
	identity := ageIdentity(t)
	dead, fresh, escrow := namedVault(t, 1), namedVault(t, 2), ageKEK(t, identity)
	for name, keks := range map[string][2]kek.KEK{"KMS first": {fresh, escrow}, "escrow first": {escrow, fresh}} {
		disk := keyringtest.NewDisk()
		old := []kek.KEK{dead, escrow}
		if keks[0] == escrow {
			old = []kek.KEK{escrow, dead}
		}
		plantKey(t, disk, meta.KeyID{1}, old...)
		s := openStore(t, disk, keks[:], []kek.KEK{ageKEK(t, identity, identity)})
		if !s.Confirm(meta.KeyID{1}) || s.OnOldKEKs() != 1 {
			t.Errorf("%s: %d on old KEKs", name, s.OnOldKEKs())
		}
		s.VouchFor(meta.KeyID{1})
		if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
			t.Errorf("%s: rewrap: %v, %d left", name, err, s.OnOldKEKs())
		}
		s.Close()
		if s = openStore(t, disk, keks[:], []kek.KEK{ageKEK(t, identity, identity)}); s.OnOldKEKs() != 0 {
			t.Errorf("%s: %d on old KEKs after all were rewrapped", name, s.OnOldKEKs())
		}
		s.Close()
		if s = openStore(t, disk, keks[:], nil); !s.Confirm(meta.KeyID{1}) || s.OnOldKEKs() != 0 {
			t.Errorf("%s: it does not open without the identity", name)
		}
		s.Close()
	}
}

// TestFileThatAPresentKEKDoesNotOpenIsRewrapped: another one opens it, which may be the next to go.
func TestFileThatAPresentKEKDoesNotOpenIsRewrapped(t *testing.T) {
	a, dead, fresh := newKMS("a"), namedVault(t, 1), namedVault(t, 2)
	for name, c := range map[string]struct{ were, keks, old []kek.KEK }{
		"one was exchanged":                             {[]kek.KEK{a, newKMS("other")}, []kek.KEK{a, fresh}, nil},
		"one was added":                                 {[]kek.KEK{a}, []kek.KEK{a, fresh}, nil},
		"it disowns the file":                           {[]kek.KEK{dead, a}, []kek.KEK{fresh, a}, nil},
		"it does not say that":                          {[]kek.KEK{dead, a}, []kek.KEK{kektest.Picky{KEK: fresh}, a}, nil},
		"the old one of its name opens":                 {[]kek.KEK{dead, a}, []kek.KEK{fresh, a}, []kek.KEK{dead}},
		"it was not asked, but an old one has its name": {[]kek.KEK{a, dead}, []kek.KEK{a, fresh}, []kek.KEK{dead}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := keyringtest.NewDisk()
			plantKey(t, disk, meta.KeyID{1}, c.were...)
			s := openStore(t, disk, c.keks, c.old)
			if !s.Confirm(meta.KeyID{1}) || s.OnOldKEKs() != 1 {
				t.Errorf("%d to rewrap", s.OnOldKEKs())
			}
			if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
				t.Errorf("%v, %d left", err, s.OnOldKEKs())
			}
			s.Close()
			if s = openStore(t, disk, []kek.KEK{fresh}, nil); !s.Confirm(meta.KeyID{1}) || s.OnOldKEKs() != 1 {
				t.Errorf("%d to rewrap off what is no KEK any more", s.OnOldKEKs())
			}
			s.Close()
			if s = openStore(t, disk, c.keks, c.old); s.OnOldKEKs() != 0 {
				t.Errorf("%d to rewrap after it was done", s.OnOldKEKs())
			}
		})
	}
}

// TestFileIsNotToBeRewrappedBecauseItsKEKIsAway: there is no reason to think so.
func TestFileIsNotToBeRewrappedBecauseItsKEKIsAway(t *testing.T) {
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
	plantKey(t, disk, meta.KeyID{1}, a, b)
	a.Set(away["fails"])
	if s := openStore(t, disk, []kek.KEK{a, b}, nil); !s.Confirm(meta.KeyID{1}) || s.OnOldKEKs() != 0 {
		t.Errorf("%d on old KEKs", s.OnOldKEKs())
	}
}

// TestKMSThatHangsInARewrapIsNotAskedForEachFile: each call would take its whole time.
func TestKMSThatHangsInARewrapIsNotAskedForEachFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
		for i := range 200 {
			plantKey(t, disk, meta.KeyID{byte(i)}, a)
		}
		s := openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
		b.Set(away["hangs"])
		before, began := b.Calls(), time.Now()
		if err := s.Rewrap(t.Context()); !errors.Is(err, context.DeadlineExceeded) || s.OnOldKEKs() != 200 || len(err.Error()) > 300 {
			t.Errorf("%v, %d left", err, s.OnOldKEKs())
		}
		if d, n := time.Since(began), b.Calls()-before; d > 11*time.Second || n != 1 {
			t.Errorf("%v, %d calls", d, n)
		}
		b.Set(answers)
		if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
			t.Errorf("when it answers again: %v, %d left", err, s.OnOldKEKs())
		}
		s.Close()
	})
}

// errBroken is a KMS that wraps, and can't open what it wrapped.
var errBroken = errors.New("permission denied")

// TestRewrapWritesNothingThatWouldNotOpen: the new KEK may wrap and not unwrap.
func TestRewrapWritesNothingThatWouldNotOpen(t *testing.T) {
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
	plantKey(t, disk, meta.KeyID{1}, a)
	before := fmt.Sprint(keyFiles(disk))
	s := openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
	b.Set(func(k *kms) { k.NoUnwrap = errBroken })
	if err := s.Rewrap(t.Context()); !errors.Is(err, errBroken) || s.OnOldKEKs() != 1 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("the file was replaced by one that nothing opens")
	}
	b.Set(answers)
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	s.Close()
	s = openStore(t, disk, []kek.KEK{b}, nil)
	if !s.Confirm(meta.KeyID{1}) {
		t.Error("the key does not open under the new KEK alone")
	}
}

// TestWrongKEKLeavesFilesAlone: one by the right name that is another KEK.
func TestWrongKEKLeavesFilesAlone(t *testing.T) {
	disk, right := keyringtest.NewDisk(), newKMS("kms")
	right.Inner = fileKEK(t, countingKey())
	plantKey(t, disk, meta.KeyID{1}, right)
	before := fmt.Sprint(keyFiles(disk))
	wrong := newKMS("kms")
	wrong.Inner = fileKEK(t, bytes.Repeat([]byte{7}, 32))
	s := openStore(t, disk, []kek.KEK{wrong}, nil)
	if err := s.Rewrap(t.Context()); err == nil || s.OnOldKEKs() != 1 || len(s.SetAside()) > 0 {
		t.Errorf("rewrap: %v, %d left, set aside %v", err, s.OnOldKEKs(), s.SetAside())
	}
	s.Close()
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("a file was touched")
	}

	// Where both are configured, the old one by the same name, the file moves.
	s = openStore(t, disk, []kek.KEK{wrong}, []kek.KEK{right})
	if s.OnOldKEKs() != 1 {
		t.Errorf("%d files on the old KEK of the same name", s.OnOldKEKs())
	}
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	s.Close()
	s = openStore(t, disk, []kek.KEK{wrong}, nil)
	if !s.Confirm(meta.KeyID{1}) {
		t.Error("the key does not open under the new KEK alone")
	}
}

// TestOldKEKIsNeededUntilTheNewFilesAreSynced: a crash may bring the old file back for as long as the new one's name is not synced.
func TestOldKEKIsNeededUntilTheNewFilesAreSynced(t *testing.T) {
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
	plantKey(t, disk, meta.KeyID{1}, a)
	s := openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
	defer s.Close()
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "dirsync" {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	if err := s.Rewrap(t.Context()); !errors.Is(err, syscall.EIO) || s.OnOldKEKs() != 1 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	disk.OnOp(nil)
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
}

// TestRewrapGoesOnWhereItEnded, in the same process or in the next one, whatever opens the
// keystore meanwhile has every key.
func TestRewrapGoesOnWhereItEnded(t *testing.T) {
	const files = 200
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), &shortLived{KEK: newKMS("b")}
	for i := range files {
		plantKey(t, disk, meta.KeyID{byte(i)}, a)
	}
	left := files
	for _, part := range []int{30, 100, files} {
		ctx, cancel := context.WithCancel(t.Context())
		b.wraps.Store(0)
		b.most, b.end = int64(part), cancel
		s := openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
		if n := s.OnOldKEKs(); n != left {
			t.Errorf("%d files on the old KEK, %d were left", n, left)
		}
		most := int64(min(part+atOnce, left)) // it may have been asked for more when it ends
		err := s.Rewrap(ctx)
		left = s.OnOldKEKs()
		if done := part == files; done != (err == nil) || done != (left == 0) || b.wraps.Load() > most {
			t.Errorf("up to %d: %v, %d left, %d wrapped", part, err, left, b.wraps.Load())
		}
		for i := range files {
			if !s.Confirm(meta.KeyID{byte(i)}) {
				t.Errorf("up to %d: key %d is not held", part, i)
			}
		}
		s.Close()
	}
	s := openStore(t, disk, []kek.KEK{b}, nil)
	for i := range files {
		if !s.Confirm(meta.KeyID{byte(i)}) {
			t.Errorf("key %d does not open under the new KEK alone", i)
		}
	}
}

// shortLived is a KEK at which the caller loses patience.
type shortLived struct {
	kek.KEK
	wraps atomic.Int64
	most  int64
	end   func()
}

func (k *shortLived) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if string(plaintext) != "probe" && k.wraps.Add(1) > k.most {
		k.end()
		return nil, ctx.Err()
	}
	return k.KEK.Wrap(ctx, plaintext, aad)
}
