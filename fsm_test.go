package keyring_test

import (
	"bytes"
	"errors"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// TestFSMIsWhatRaftAndTheHostSee of the metadata: entries, snapshots, the fence. internal/fsm has the tests of all the rest.
func TestFSMIsWhatRaftAndTheHostSee(t *testing.T) {
	f := keyringtest.FilledFSM(t)
	sealed := append([]byte{1, 1}, make([]byte, keyring.Overhead)...) // under the active key, by its form
	if id, err := keyring.CiphertextKeyID(sealed); err != nil || id != (keyring.KeyID{1}) {
		t.Fatalf("%v, %v", id, err)
	}
	check := func(name string, f *keyring.FSM) {
		t.Helper()
		if err := f.Admit(sealed); err != nil {
			t.Errorf("%s, under the active key: %v", name, err)
		}
		if err := f.Admit(keyringtest.Naming(sealed, keyring.KeyID{2})); !errors.Is(err, keyring.ErrStaleKey) {
			t.Errorf("%s, under another key: %v", name, err)
		}
		if err := f.Admit(nil); !errors.Is(err, keyring.ErrDecrypt) {
			t.Errorf("%s, of no ciphertext: %v", name, err)
		}
	}
	check("applied", f)
	if err := keyring.NewFSM().Admit(sealed); !errors.Is(err, keyring.ErrNotReady) {
		t.Errorf("an FSM that has applied nothing: %v", err)
	}

	snap := keyringtest.SnapshotOf(t, f)
	restored, behindMux := keyring.NewFSM(), keyring.NewFSM()
	if err := keyringtest.RestoreFSM(restored, snap); err != nil {
		t.Fatal(err)
	}
	check("restored", restored)
	if err := keyringtest.RestoreFSM(keyring.Mux(behindMux, &keyringtest.App{}), append(snap, "line"...)); err != nil {
		t.Fatal(err)
	}
	check("restored behind a Mux", behindMux)
	if _, err := f.CheckSnapshot(bytes.NewReader(snap[:len(snap)-1])); !errors.Is(err, keyring.ErrCorrupt) {
		t.Errorf("a snapshot that is cut short: %v", err)
	}
	if err := f.Apply(&raft.Log{Index: 99, Type: raft.LogCommand}).(error); !errors.Is(err, keyring.ErrCorrupt) {
		t.Errorf("a foreign entry: %v", err)
	}
	again := keyringtest.LogEntry(t, 100, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{9}}})
	if err := f.Apply(again).(error); !errors.Is(err, meta.ErrCommandRefused) {
		t.Errorf("a second init: %v", err)
	}
}

func TestMuxTakesBatchesIfTheHostDoes(t *testing.T) {
	for _, form := range keyringtest.AppForms {
		m := keyring.Mux(keyring.NewFSM(), form.Of(&keyringtest.App{}))
		if _, ok := m.(raft.BatchingFSM); ok != form.Batches {
			t.Errorf("%s: a BatchingFSM: %v", form.Name, ok)
		}
	}
}
