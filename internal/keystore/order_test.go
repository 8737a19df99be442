package keystore_test

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/go-hclog"
)

// TestSlowKMSDoesNotHoldTheStart: the newest keys are open after seconds, and the rest one turn after the other, each with one
// call. Until then nothing takes the place of their files.
func TestSlowKMSDoesNotHoldTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const files = 1000
		disk := keyringtest.NewDisk()
		for i := range files {
			plantKey(t, disk, meta.KeyID{1, byte(i * 7), byte(i), byte(i >> 8)}, newKMS("a"))
			time.Sleep(time.Second) // virtual: they are told apart by when they were made
		}
		newest := meta.KeyID{1, byte((files - 1) * 7 % 256), byte((files - 1) % 256), byte((files - 1) >> 8)}
		fsys, err := disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		k := &slowKMS{KEK: newKMS("a"), takes: 2 * time.Second}
		set := kek.NewSet([]kek.KEK{k}, nil)
		began := time.Now()
		s, err := keystore.OpenNewest(t.Context(), fsys, set, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if d := time.Since(began); d > 10*time.Second || !s.InMemory(newest) || s.Unopened() != files-atOnce {
			t.Errorf("after %v the newest is open: %v; %d are not", d, s.InMemory(newest), s.Unopened())
		}
		closed := len(s.Present().Closed)
		_, waiting := s.Unknown(&meta.Ring{}, files)
		if closed != files-atOnce || waiting.Files != closed || !s.IsCurable(&meta.Ring{}) {
			t.Errorf("%d are closed, and %d of %d wait", closed, waiting.Files, waiting.Of)
		}
		turns := 0
		for ; s.Unopened() > 0 && turns < files; turns++ {
			began := time.Now()
			if err := s.Heal(t.Context(), &meta.Ring{}, nil, nil); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d > 12*time.Second {
				t.Errorf("a turn took %v", d)
			}
		}
		if open := len(s.Report(&meta.Ring{}).Files); open != files || k.calls != files+2 || k.most > atOnce {
			t.Errorf("%d are open after %d turns and %d calls, %d at a time", open, turns, k.calls, k.most)
		}
	})
}

// TestActiveKeyIsOpenedNext, however old it is, once the ring says which one it is.
func TestActiveKeyIsOpenedNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, active := keyringtest.NewDisk(), meta.KeyID{9}
		plantKey(t, disk, active, newKMS("a"))
		for i := range 400 {
			time.Sleep(time.Second) // virtual
			plantKey(t, disk, meta.KeyID{1, byte(i), byte(i >> 8)}, newKMS("a"))
		}
		fsys, err := disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		set := kek.NewSet([]kek.KEK{&slowKMS{KEK: newKMS("a"), takes: 2 * time.Second}}, nil)
		s, err := keystore.OpenNewest(t.Context(), fsys, set, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.InMemory(active) || s.FaultOf(active) == nil {
			t.Error("the oldest was opened first, or nothing says why it is not open")
		}
		ring := ringWithActive(t, active)
		if err := s.Heal(t.Context(), ring, nil, nil); err != nil || !s.InMemory(active) {
			t.Errorf("it is not open after the next turn: %v", err)
		}
	})
}

// TestFilesThatDoNotOpenKeepNoOtherFromItsTurn, however new they say that they are: anybody may have made them who can write
// into the directory.
func TestFilesThatDoNotOpenKeepNoOtherFromItsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, old := keyringtest.NewDisk(), meta.KeyID{9}
		k := &slowKMS{KEK: namedVault(t, 1), takes: 2 * time.Second}
		plantKey(t, disk, old, k.KEK)
		for i := range 400 {
			time.Sleep(time.Second) // virtual
			plantKey(t, disk, meta.KeyID{1, byte(i), byte(i >> 8)}, namedVault(t, 2))
		}
		fsys, err := disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		s, err := keystore.OpenNewest(t.Context(), fsys, kek.NewSet([]kek.KEK{k}, nil), hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 20 {
			if err := s.Heal(t.Context(), &meta.Ring{}, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !s.InMemory(old) {
			t.Errorf("a file has not had its turn: %v", s.FaultOf(old))
		}
	})
}

// ringWithActive is a ring with one key, which is active.
func ringWithActive(t *testing.T, id meta.KeyID) *meta.Ring {
	t.Helper()
	server := meta.Server{ID: "s1", Keystore: meta.KeystoreID{1}}
	key := meta.NewKey{ID: id, Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: time.Now()}
	ring, err := new(meta.Ring).Apply(5, []meta.Command{
		{Init: &meta.Init{Cluster: meta.ClusterID{1}}},
		{Add: &meta.Add{Key: key}},
		{Hold: &meta.Hold{Server: server.ID, Keystore: server.Keystore, Gained: []meta.KeyID{id}}},
		{Activate: &meta.Activate{ID: id, Voters: []string{server.ID}, Confirmed: []meta.Server{server}, Time: time.Now()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}
