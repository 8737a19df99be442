package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

// audited are the events that the servers of a test have told.
type audited struct {
	mu     sync.Mutex // guards below
	events []keyring.Event
	more   chan struct{} // is closed with the next one
}

func (a *audited) tell(e keyring.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
	if a.more != nil {
		close(a.more)
		a.more = nil
	}
}

// await waits for an event of a step that an actor has asked for.
func (a *audited) await(ctx context.Context, step keyring.Step, actor string) error {
	for {
		a.mu.Lock()
		told := slices.ContainsFunc(a.events, func(e keyring.Event) bool { return e.Step == step && e.Actor == actor })
		if a.more == nil {
			a.more = make(chan struct{})
		}
		more := a.more
		a.mu.Unlock()
		if told {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestNodesForwardConfirmBackup of the leader's: wherever it is stored, it is noted, with who has asked. One that the leader has
// not made is unknown everywhere.
func TestNodesForwardConfirmBackup(t *testing.T) {
	t.Parallel()
	var told audited
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Audit = told.tell })
	c.Ready(ctx)
	to := kektest.Identity(t).Recipient()
	for id, n := range c.Nodes {
		m, err := c.Nodes[n.Leader()].Keyring().WriteBackup(ctx, io.Discard, to)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.ConfirmBackup(keyring.WithActor(ctx, "store of "+string(id)), m.SHA256); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if st, err := n.Status(ctx); err != nil || st.LastBackup.SHA256 != m.SHA256 {
			t.Errorf("%s: the last backup is %x, want %x, %v", id, st.LastBackup.SHA256, m.SHA256, err)
		}
		if err := n.ConfirmBackup(ctx, [32]byte{1}); !errors.Is(err, keyring.ErrUnknownBackup) {
			t.Errorf("%s: another: %v", id, err)
		}
	}
	for id := range c.Nodes {
		if err := told.await(ctx, keyring.StepBackup, "store of "+string(id)); err != nil {
			t.Errorf("%s: nobody is told who has confirmed: %v", id, err)
		}
	}
}

// TestNodesForwardAdopt: the file may lie on any server, and any may be asked.
func TestNodesForwardAdopt(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	ids := slices.Sorted(maps.Keys(c.Nodes))
	for i, id := range ids {
		orphan := keyringtest.NewKeyID()
		file, _ := keyringtest.NewKeyFile(t, orphan, c.KEKs[id]...)
		if err := os.WriteFile(filepath.Join(c.Dirs[id], "keystore", orphan.String()+".nks.json"), file, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Restart(ctx, id) // it finds the file
		c.Ready(ctx)
		asked := c.Nodes[ids[(i+1)%len(ids)]]
		if err := asked.Adopt(ctx, orphan); err != nil {
			t.Errorf("the file of %s: %v", id, err)
		}
		for _, n := range c.Nodes {
			awaitState(n, orphan, keyring.StateInactive)
		}
		if err := asked.Adopt(ctx, keyring.KeyID{byte(i)}); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("a key that no server has: %v", err)
		}
	}
}

// TestNodesEncryptToWhatTheyStore: again while the key was rotated in between, and no more after any other answer.
func TestNodesEncryptToWhatTheyStore(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	for id, n := range c.Nodes {
		var stored [][]byte
		err := n.EncryptTo(ctx, []byte("text"), []byte("aad"), func(_ context.Context, ciphertext []byte) error {
			stored = append(stored, ciphertext)
			if len(stored) < 4 {
				return fmt.Errorf("answer %d: %w", len(stored), keyring.ErrStaleKey)
			}
			return nil
		})
		if err != nil || len(stored) != 4 || bytes.Equal(stored[0], stored[1]) {
			t.Errorf("%s: %d ciphertexts, %v", id, len(stored), err)
		}
		for _, ciphertext := range stored {
			if got, err := n.Decrypt(ctx, ciphertext, []byte("aad")); err != nil || string(got) != "text" {
				t.Errorf("%s: %q, %v", id, got, err)
			}
		}
		full, tries := errors.New("full"), 0
		if err := n.EncryptTo(ctx, nil, nil, func(context.Context, []byte) error { tries++; return full }); err != full || tries != 1 {
			t.Errorf("%s: %d tries, %v", id, tries, err)
		}
		ctx, cancel := context.WithCancel(ctx)
		err = n.EncryptTo(ctx, nil, nil, func(context.Context, []byte) error { cancel(); return keyring.ErrStaleKey })
		if !errors.Is(err, context.Canceled) || !errors.Is(err, keyring.ErrStaleKey) {
			t.Errorf("%s: %v", id, err)
		}
	}
}
