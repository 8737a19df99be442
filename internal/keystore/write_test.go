package keystore_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// gated is a disk whose first sync of the directory waits, and that counts them.
type gated struct {
	durable.FS
	syncs         atomic.Int32
	reached, open chan struct{}
}

func (g *gated) Sync() error {
	if g.syncs.Add(1) == 1 {
		close(g.reached)
		<-g.open
	}
	return g.FS.Sync()
}

// TestPutsThatWaitAreWrittenTogether: keys that come while others are being written share the syncs of
// one write, and one that comes twice is held in the end.
func TestPutsThatWaitAreWrittenTogether(t *testing.T) {
	const more = 5
	fsys, err := keyringtest.NewDisk().Open()
	if err != nil {
		t.Fatal(err)
	}
	disk := &gated{FS: fsys, reached: make(chan struct{}), open: make(chan struct{})}
	disk.syncs.Store(-1) // the first is that of the keystore's ID
	store, err := openOn(t.Context(), disk, []kek.KEK{kek.Inline()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var puts sync.WaitGroup
	put := func(id meta.KeyID, m *nks.Material) {
		puts.Go(func() {
			if err := store.Put(t.Context(), map[meta.KeyID]*nks.Material{id: m})[id]; err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	put(meta.KeyID{0xff}, newMaterial())
	<-disk.reached
	m := newMaterial()
	for i := range more {
		put(meta.KeyID{byte(i)}, m)
	}
	put(meta.KeyID{0}, m)
	for store.QueuedPuts() < more+1 {
		runtime.Gosched()
	}
	close(disk.open)
	puts.Wait()
	if n := disk.syncs.Load(); n != 3 { // the first, the others, and the second of one key
		t.Errorf("the directory was synced %d times, want 3", n)
	}
	for i := range more {
		if !store.Confirm(meta.KeyID{byte(i)}) {
			t.Errorf("key %d is not held", i)
		}
	}
}

// TestNothingIsWrittenThatDoesNotOpen: such a file would be an orphan for ever.
func TestNothingIsWrittenThatDoesNotOpen(t *testing.T) {
	disk, a := keyringtest.NewDisk(), newKMS("a")
	s := openStore(t, disk, []kek.KEK{a}, nil)
	a.Set(func(k *kms) { k.NoUnwrap = errBroken })
	if _, err := put(t, s, meta.KeyID{1}); !errors.Is(err, errBroken) || len(keyFiles(disk)) > 0 {
		t.Errorf("%v, %d files", err, len(keyFiles(disk)))
	}
	a.Set(answers)
	if check, err := put(t, s, meta.KeyID{1}); err != nil || !s.Has(meta.KeyID{1}, check) {
		t.Errorf("when it unwraps again: %v", err)
	}
}

// untilRenamed is a fault that ends when the file is renamed, or another is renamed to it.
func untilRenamed(name string, fault func(keyringtest.Op) keyringtest.Fault) func(keyringtest.Op) keyringtest.Fault {
	var mu sync.Mutex // guards fault
	return func(op keyringtest.Op) keyringtest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == "rename" && (op.Name == name || op.To == name) {
			fault = nil // what comes now can be read
		}
		if fault == nil {
			return keyringtest.Fault{}
		}
		return fault(op)
	}
}

// TestNewKeyReplacesNoFileThatIsNotInMemory: it may be the way back, if it is under a KEK
// that is not configured or can't be read at the moment. One that is bad is set aside first. One that the disk can't give may be Nomad's: it stays, and the key's is written beside it.
func TestNewKeyReplacesNoFileThatIsNotInMemory(t *testing.T) {
	id := meta.KeyID{1}
	name := nks.FileName(id)
	eio := func(op keyringtest.Op) keyringtest.Fault {
		if op.Name == name && (op.Kind == "open" || op.Kind == "read") {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	}
	emfile := func(op keyringtest.Op) keyringtest.Fault {
		if f := eio(op); f.Err != nil {
			return keyringtest.Fault{Err: syscall.EMFILE}
		}
		return keyringtest.Fault{}
	}
	for what, c := range map[string]struct {
		kek     kek.KEK // nil for no key file
		late    bool    // it appears when the store is open
		fault   func(keyringtest.Op) keyringtest.Fault
		refused bool
		aside   string
	}{
		"locked":               {kek: newKMS("another"), refused: true},
		"locked, later":        {kek: newKMS("another"), late: true, refused: true},
		"good, later":          {kek: newKMS("a"), late: true, refused: true},
		"bad, later":           {late: true, aside: ".malformed-1"},
		"unreadable":           {kek: newKMS("a"), fault: eio}, // it is left, and the new one is written beside it
		"unreadable, and more": {kek: newKMS("another"), fault: eio},
		"no descriptors":       {kek: newKMS("a"), fault: emfile, refused: true},
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
			disk.OnOp(untilRenamed(name, c.fault))
			s := openStore(t, disk, []kek.KEK{newKMS("a")}, nil)
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
				t.Errorf("what was there is not kept as %q: %v", name+c.aside, disk.Names())
			}
		})
	}
}

// TestNewKeyReplacesNoOtherOfItsID: what is in memory may be an old backup's, of which nobody else
// has a copy.
func TestNewKeyReplacesNoOtherOfItsID(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	name := nks.FileName(id)
	s := openStore(t, disk, []kek.KEK{newKMS("a")}, nil)
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

// TestNewerFileIsNotWrittenOver: also where the key is in memory.
func TestNewerFileIsNotWrittenOver(t *testing.T) {
	id, disk := meta.KeyID{1}, keyringtest.NewDisk()
	name := nks.FileName(id)
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	late := laterVersion(disk.Bytes(name))
	disk.Plant(name, 0o600, late)
	if s.Confirm(id) {
		t.Error("it is held")
	}
	if err := s.Rewrite(t.Context(), id); !errors.Is(err, nks.ErrVersion) || !bytes.Equal(disk.Bytes(name), late) {
		t.Errorf("it is written over: %v", err)
	}
	s.Close()
	s = openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	defer s.Close()
	if _, err := put(t, s, id); !errors.Is(err, nks.ErrVersion) || !bytes.Equal(disk.Bytes(name), late) {
		t.Errorf("it is written over after a start: %v", err)
	}
}

// TestKeystoreIDOfANewerVersionStopsTheStart: another ID in its place would cost every hold.
func TestKeystoreIDOfANewerVersionStopsTheStart(t *testing.T) {
	disk := keyringtest.NewDisk()
	openStore(t, disk, []kek.KEK{kek.Inline()}, nil).Close()
	late := []byte("v2 00112233445566778899aabbccddeeff\n" + strings.Repeat("more\n", 100))
	disk.Plant("keystore.id", 0o600, late)
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openOn(t.Context(), fsys, []kek.KEK{kek.Inline()}, nil); !errors.Is(err, nks.ErrVersion) {
		t.Error(err)
	}
	if !bytes.Equal(disk.Bytes("keystore.id"), late) {
		t.Errorf("it is %q", disk.Bytes("keystore.id"))
	}
}

// TestEveryBitOfAKeyFileFlipped: none of them goes unseen, and none loses a byte. What makes a later version
// of it is left where it is.
func TestEveryBitOfAKeyFileFlipped(t *testing.T) {
	id, kek := meta.KeyID{1}, []kek.KEK{kek.Inline()}
	name := nks.FileName(id)
	good, _ := newKeyFile(t, id, kek...)
	for i := range 8 * len(good) {
		disk, bad := keyringtest.NewDisk(), bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		disk.Plant(name, 0o600, bad)
		s := openStore(t, disk, kek, nil)
		aside := name + ".malformed-1"
		if bytes.Contains(bad, []byte(`"Version": `)) && bad[15] > '0'+nks.FileVersion && bad[15] <= '9' {
			if len(s.SetAside()) > 0 || !bytes.Equal(disk.Bytes(name), bad) || s.Confirm(id) {
				t.Errorf("version %c: set aside %v", bad[15], s.SetAside())
			}
		} else if s.Confirm(id) || !slices.Equal(s.SetAside(), []string{aside}) || !bytes.Equal(disk.Bytes(aside), bad) {
			t.Errorf("bit %d of byte %d: set aside %v", i%8, i/8, s.SetAside())
		}
		s.Close()
	}
}

// heedful is a KEK that does nothing for a caller whose context has ended.
type heedful struct{ kek.KEK }

func (k heedful) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// TestEndOfOnePutIsNoErrorOfAnother that waits with it: whichever of them writes, it writes for both.
func TestEndOfOnePutIsNoErrorOfAnother(t *testing.T) {
	for range 10 { // either may come first
		disk, id, under := keyringtest.NewDisk(), meta.KeyID{1}, heedful{newKMS("a")}
		fsys, err := disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		gate := &gated{FS: fsys, reached: make(chan struct{}), open: make(chan struct{})}
		gate.syncs.Store(-1) // the first is that of the keystore's ID
		s, err := openOn(t.Context(), gate, []kek.KEK{under}, nil)
		if err != nil {
			t.Fatal(err)
		}
		plantKey(t, disk, id, under) // a file that is not in memory, so that a Put has to open it
		var puts sync.WaitGroup
		put := func(ctx context.Context, id meta.KeyID) {
			puts.Go(func() {
				err := s.Put(ctx, map[meta.KeyID]*nks.Material{id: newMaterial()})[id]
				if ctx.Err() == nil && (id == meta.KeyID{1}) == (err == nil) || errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		put(t.Context(), meta.KeyID{2})
		<-gate.reached
		impatient, end := context.WithCancel(t.Context())
		for i, ctx := range []context.Context{impatient, t.Context()} {
			put(ctx, meta.KeyID{byte(3 - 2*i)})
			for s.QueuedPuts() < i+1 {
				runtime.Gosched()
			}
		}
		end()
		close(gate.open)
		puts.Wait()
		s.Close()
	}
}

// TestKeyThatCouldNotBeWrittenIsOverwritten in memory, where it was already proven to open.
func TestKeyThatCouldNotBeWrittenIsOverwritten(t *testing.T) {
	for _, kind := range []string{"create", "write", "sync", "rename", "open"} {
		disk := keyringtest.NewDisk()
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		live, err := s.PutLive(newKey(meta.KeyID{1}, newMaterial()))
		if err != nil || zero(live[0]) || zero(live[1]) {
			t.Fatalf("a key that is held: %v, %v", live, err)
		}
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == kind {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		live, err = s.PutLive(newKey(meta.KeyID{2}, newMaterial()))
		if err == nil || !zero(live[0]) || !zero(live[1]) {
			t.Errorf("%s fails: %v, and the key is left in memory", kind, err)
		}
	}
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }
