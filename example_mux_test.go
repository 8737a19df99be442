package keyring_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"sync"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// passwords is the FSM of a host: ciphertexts by user.
type passwords struct {
	keys *keyring.FSM

	mu sync.Mutex // guards below
	of map[string][]byte
}

// setPassword is its command.
type setPassword struct {
	User       string
	Ciphertext []byte
}

// Apply stores nothing that Admit refuses: so nothing is encrypted under a key after its retirement. It never decrypts.
func (p *passwords) Apply(l *raft.Log) any {
	var c setPassword
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return err
	}
	if err := p.keys.Admit(c.Ciphertext); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[c.User] = c.Ciphertext
	return nil
}

func (p *passwords) Snapshot() (raft.FSMSnapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return passwordsSnapshot(maps.Clone(p.of)), nil
}

func (p *passwords) Restore(r io.ReadCloser) error {
	defer r.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.of)
	return json.NewDecoder(r).Decode(&p.of)
}

type passwordsSnapshot map[string][]byte

func (s passwordsSnapshot) Persist(to raft.SnapshotSink) error {
	if err := json.NewEncoder(to).Encode(s); err != nil {
		return errors.Join(err, to.Cancel())
	}
	return to.Close()
}

func (s passwordsSnapshot) Release() {}

// A host's own FSM shares the raft, behind Mux. Its Apply calls Admit for each ciphertext.
func ExampleMux() {
	fsm := keyring.NewFSM()
	app := &passwords{keys: fsm, of: map[string][]byte{}}
	// To raft.NewRaft goes keyring.Mux(fsm, app), and to keyring.Open Config.FSM: fsm. See Open.
	s := startExample(keyring.Config{FSM: fsm}, app)
	defer s.stop()

	set := func(user string, ciphertext []byte) error {
		command, err := json.Marshal(setPassword{user, ciphertext})
		if err != nil {
			return err
		}
		f := s.raft.Apply(command, 10*time.Second)
		if err := f.Error(); err != nil {
			return err
		}
		err, _ = f.Response().(error)
		return err
	}
	ciphertext, err := s.keys.Encrypt([]byte("hunter2"), []byte("anna"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(set("anna", ciphertext))

	if _, err := s.keys.Rotate(context.Background(), keyring.RotateOptions{}); err != nil {
		log.Fatal(err)
	}
	err = set("anna", ciphertext) // encrypted before the rotation: EncryptTo does it again
	fmt.Println(errors.Is(err, keyring.ErrStaleKey))
	// Output:
	// <nil>
	// true
}
