package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"maps"
	"sync"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// notes is the FSM of a host, and its Config.Data: where the keyring finds what is to be encrypted again.
type notes struct {
	keys *keyring.FSM
	raft *raft.Raft

	mu  sync.Mutex // guards below
	all map[string][]byte
}

// swapNote is its command: New takes the place of Old, which is nil for a new note.
type swapNote struct {
	Name     string
	Old, New []byte
}

var errChanged = errors.New("the note has changed")

func (n *notes) Apply(l *raft.Log) any {
	var c swapNote
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return err
	}
	if err := n.keys.Admit(c.New); err != nil {
		return err // ErrStaleKey: the writer encrypts again
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !bytes.Equal(n.all[c.Name], c.Old) {
		return errChanged
	}
	n.all[c.Name] = c.New
	return nil
}

// propose has raft apply a command.
func (n *notes) propose(c swapNote) error {
	command, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f := n.raft.Apply(command, 10*time.Second)
	if err := f.Error(); err != nil {
		return err
	}
	err, _ = f.Response().(error)
	return err
}

// Under implements keyring.SealedData. It yields every note: those under another key are passed over.
func (n *notes) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := maps.Clone(n.all)
	return func(yield func(keyring.Sealed, error) bool) {
		for name, ciphertext := range all {
			if !yield(keyring.Sealed{Ref: name, Ciphertext: ciphertext, AAD: []byte(name)}, nil) {
				return
			}
		}
	}
}

// Replace implements keyring.SealedData. Of many notes, one command should swap a batch.
func (n *notes) Replace(_ context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	for _, r := range batch {
		err := n.propose(swapNote{r.Ref, r.Ciphertext, r.New})
		switch {
		case errors.Is(err, errChanged), errors.Is(err, keyring.ErrStaleKey):
			conflicts++
		case err != nil:
			return conflicts, err
		}
	}
	return conflicts, nil
}

func (n *notes) Snapshot() (raft.FSMSnapshot, error) {
	return nil, errors.New("see the example of Mux")
}
func (n *notes) Restore(io.ReadCloser) error { return errors.New("see the example of Mux") }

// A host that keeps ciphertexts in a raft of its own writes them through EncryptTo, and lets the keyring find
// them with Config.Data. Then a full rotation re-encrypts them, and the old key can be removed. Package
// records does all of this for a host that uses its Map.
func ExampleKeyring_EncryptTo() {
	ctx := context.Background()
	fsm := keyring.NewFSM()
	app := &notes{keys: fsm, all: map[string][]byte{}}
	s := startExample(keyring.Config{FSM: fsm, Data: app}, app)
	defer s.stop()
	app.raft = s.raft

	store := func(_ context.Context, ciphertext []byte) error {
		return app.propose(swapNote{Name: "todo", New: ciphertext})
	}
	if err := s.keys.EncryptTo(ctx, []byte("water the plants"), []byte("todo"), store); err != nil {
		log.Fatal(err)
	}

	old := s.keys.Keys()[0].ID
	if _, err := s.keys.Rotate(ctx, keyring.RotateOptions{Full: true}); err != nil {
		log.Fatal(err)
	}
	if err := s.keys.Remove(ctx, old, keyring.RemoveOptions{}); err != nil { // waits until all has moved
		log.Fatal(err)
	}
	app.mu.Lock()
	defer app.mu.Unlock()
	plaintext, err := s.keys.Decrypt(app.all["todo"], []byte("todo"))
	fmt.Printf("%s, %v; keys: %d\n", plaintext, err, len(s.keys.Keys()))
	// Output: water the plants, <nil>; keys: 1
}
