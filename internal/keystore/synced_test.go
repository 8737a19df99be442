package keystore_test

import (
	"slices"
	"sync"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestStartSyncsWhatHasComeSinceTheLast, and nothing else: most of a start would be syncs. What is held without one outlasts a
// loss of power.
func TestStartSyncsWhatHasComeSinceTheLast(t *testing.T) {
	disk, a, b := keyringtest.NewDisk(), meta.KeyID{1}, meta.KeyID{2}
	content, _ := newKeyFile(t, b, kek.Inline())
	for i, step := range []struct {
		before func()
		want   []string // that are synced; all keys that there are are held
		held   []meta.KeyID
	}{
		{func() {
			s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
			put(t, s, a)
			s.Close()
		}, []string{nks.FileName(a)}, []meta.KeyID{a}},
		{func() {}, nil, []meta.KeyID{a}},
		{func() { copyFile(t, disk, nks.FileName(b), content) }, []string{nks.FileName(b)}, []meta.KeyID{a, b}},
		{func() {}, nil, []meta.KeyID{a, b}},
	} {
		step.before()
		var mu sync.Mutex
		var synced []string
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if _, ok := nks.ParseFileName(op.Name); ok && op.Kind == "sync" {
				synced = append(synced, op.Name)
			}
			return keyringtest.Fault{}
		})
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		disk.OnOp(nil)
		if !slices.Equal(synced, step.want) {
			t.Errorf("start %d: synced %q, want %q", i, synced, step.want)
		}
		after := disk.Crash(keyringtest.Dropped, 1)
		s.Close()
		s = openStore(t, after, []kek.KEK{kek.Inline()}, nil)
		for _, id := range step.held {
			if !s.Confirm(id) {
				t.Errorf("start %d: key %s is not held after a crash", i, id)
			}
		}
		s.Close()
	}
}
