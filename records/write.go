package records

// Writes and reads of a host: Put encrypts, Open decrypts.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/gate"
	"github.com/hashicorp/raft"
)

// Write is one write of a Put.
type Write struct {
	Name string
	// Meta is the host's own, in the clear. Empty means none.
	Meta []byte
	// Parts are the plaintexts, ordered by part number. They replace all parts of the record. There may be
	// none.
	Parts [][]byte
	// If is the version that the record must have now. new(uint64(0)) means that the record must not exist.
	// Nil means any.
	If *uint64
	// Delete removes the record, if there is one. Meta and Parts must be empty then.
	Delete bool
}

// check says what is wrong with a write, of plaintexts or of ciphertexts.
func (w Write) check() error {
	switch {
	case w.Name == "" || len(w.Name) > MaxName:
		return fmt.Errorf("records: a name has %d bytes: 1 to %d are allowed", len(w.Name), MaxName)
	case w.Delete && len(w.Meta)+len(w.Parts) > 0:
		return fmt.Errorf("records: the write deletes %q, but has Meta or Parts", w.Name)
	case len(w.Parts) > MaxParts:
		return fmt.Errorf("records: %q has %d parts: at most %d are allowed", w.Name, len(w.Parts), MaxParts)
	case (&Record{Name: w.Name, Meta: w.Meta, Parts: w.Parts}).tooLong():
		return fmt.Errorf("records: %q: %w: more than %d bytes", w.Name, keyring.ErrTooLong, MaxBytes)
	}
	return nil
}

// checkAll says what is wrong with the writes of one entry.
func checkAll(writes []Write) error {
	if len(writes) == 0 {
		return errors.New("records: nothing to write")
	}
	names := map[string]bool{}
	for _, w := range writes {
		if err := w.check(); err != nil {
			return err
		}
		if names[w.Name] {
			return fmt.Errorf("records: two writes of %q in one Put", w.Name)
		}
		for i, p := range w.Parts {
			if most := maxPart(w.Name); len(p) > most {
				return fmt.Errorf("records: %q, part %d: %w: %d bytes, at most %d can be re-encrypted later", w.Name, i, keyring.ErrTooLong, len(p), most)
			}
		}
		names[w.Name] = true
	}
	return nil
}

// link is what a Map acts with.
type link struct {
	keys    *keyring.Keyring
	propose func(ctx context.Context, cmd []byte) (any, error)
}

// Connect gives the Map this server's keyring, and the function that proposes commands: it returns the result
// of the host's Apply. Use Through(r) for a host with a raft of its own, and Node.Apply for a Node. Before
// Connect, Replace waits, and Put and Open return keyring.ErrNotReady. Call it again when this server's
// keyring is opened again.
func (m *Map) Connect(keys *keyring.Keyring, propose func(ctx context.Context, cmd []byte) (any, error)) {
	m.setLink(&link{keys, propose})
	m.notify() // there may be records in the clear
}

func (m *Map) setLink(l *link) {
	m.linking.Lock()
	defer m.linking.Unlock()
	if m.link == nil {
		close(m.connected)
	}
	m.link = l
}

// notify has the keyring ask for records in the clear.
func (m *Map) notify() {
	if l, err := m.linked(); err == nil {
		l.keys.Notify()
	}
}

func (m *Map) linked() (*link, error) {
	m.linking.Lock()
	defer m.linking.Unlock()
	if m.link == nil {
		return nil, fmt.Errorf("records: %w: Connect was not called", keyring.ErrNotReady)
	}
	return m.link, nil
}

// awaitLink waits for Connect.
func (m *Map) awaitLink(ctx context.Context) (*link, error) {
	select {
	case <-m.connected:
		return m.linked()
	case <-ctx.Done():
		return nil, fmt.Errorf("records: Connect was not called: %w", context.Cause(ctx))
	}
}

// applyTimeout is how long a command may wait for raft to take it.
const applyTimeout = 5 * time.Second

// Through returns the propose function of Connect for a host with a raft of its own whose FSM contains the
// Map. Leader only: elsewhere its error matches keyring.ErrNotLeader. After an error the command may still be
// executed, unless it matches keyring.ErrTooLong: a command has at most keyring.MaxCommand bytes, because the
// port would carry a longer one to no other server.
func Through(r *raft.Raft) func(ctx context.Context, cmd []byte) (any, error) {
	return func(ctx context.Context, cmd []byte) (any, error) {
		if err := tooLong(cmd); err != nil {
			return nil, err
		}
		return gate.Await(ctx, func() (any, error) {
			f := r.Apply(cmd, applyTimeout)
			switch err := f.Error(); {
			case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
				_, leader := r.LeaderWithID()
				return nil, keyring.NotLeaderError{Leader: leader}
			case err != nil:
				return nil, fmt.Errorf("apply: %w", err)
			}
			return f.Response(), nil
		})
	}
}

func tooLong(cmd []byte) error {
	if len(cmd) > keyring.MaxCommand {
		return fmt.Errorf("records: %w: a command of %d bytes, the maximum is %d", keyring.ErrTooLong, len(cmd), keyring.MaxCommand)
	}
	return nil
}

// apply proposes a command, and returns an answer of the type that Apply gives to it.
func apply[T any](ctx context.Context, l *link, cmd []byte) (answer T, err error) {
	if err := tooLong(cmd); err != nil {
		return answer, err
	}
	got, err := l.propose(ctx, cmd)
	if refusal, ok := got.(error); ok && err == nil {
		err = refusal
	}
	if err == nil {
		var ok bool
		if answer, ok = got.(T); ok {
			return answer, nil
		}
		err = fmt.Errorf("Apply returned a %T: the host's Apply must return the result of Map.Apply", got)
	}
	for _, refused := range []error{keyring.ErrStaleKey, keyring.ErrTooLong, keyring.ErrCorrupt, ErrVersion} {
		if errors.Is(err, refused) {
			return answer, err
		}
	}
	return answer, fmt.Errorf("records: %w: %w", ErrUncertain, err)
}

// Put encrypts the parts of records and writes them in one entry of raft's log, all or none. It returns their
// version, the index of that entry. If the key is rotated before the entry is applied, Put encrypts and
// proposes again, until ctx ends. Each name may occur only once. The error matches
//
//   - ErrVersion if a record does not have the version of Write.If;
//   - keyring.ErrTooLong if the entry, or one that would re-encrypt a part, is longer than keyring.MaxCommand;
//   - ErrUncertain, with the cause, if the entry may still be applied.
//
// After any other error nothing was written.
//
// Leader only: elsewhere the error is a keyring.NotLeaderError, which names the leader. The package
// documentation says how a host forwards the writes to it.
func (m *Map) Put(ctx context.Context, writes ...Write) (version uint64, err error) {
	l, err := m.linked()
	if err != nil {
		return 0, err
	}
	if err := checkAll(writes); err != nil {
		return 0, err
	}
	first := slices.IndexFunc(writes, func(w Write) bool { return len(w.Parts) > 0 })
	if first < 0 {
		if err := l.keys.Leading(); err != nil {
			return 0, err
		}
		return apply[uint64](ctx, l, encodeWrites(writes))
	}
	w := writes[first]
	err = l.keys.EncryptTo(ctx, w.Parts[0], AAD(w.Name, 0), func(ctx context.Context, ciphertext []byte) error {
		sealed, err := l.seal(writes, first, ciphertext)
		if err == nil {
			version, err = apply[uint64](ctx, l, encodeWrites(sealed))
		}
		return err
	})
	return version, err
}

// seal returns writes with all parts sealed. One is sealed already: the first part of the write of that number.
func (l *link) seal(writes []Write, number int, part0 []byte) ([]Write, error) {
	sealed := slices.Clone(writes)
	for i, w := range writes {
		sealed[i].Parts = make([][]byte, len(w.Parts))
		for j, p := range w.Parts {
			if i == number && j == 0 {
				sealed[i].Parts[j] = part0
				continue
			}
			var err error
			if sealed[i].Parts[j], err = l.keys.Encrypt(p, AAD(w.Name, j)); err != nil {
				return nil, err
			}
		}
	}
	return sealed, nil
}

// Open returns a record of this server's Map, and its plaintexts. The error is ErrNotFound, or that of
// Keyring.Decrypt. If a record is re-encrypted while it is read, Open reads it again. It works on any server.
func (m *Map) Open(name string) (Record, [][]byte, error) { return m.open(name, m.Get) }

func (m *Map) open(name string, get func(string) (Record, bool)) (Record, [][]byte, error) {
	l, err := m.linked()
	if err != nil {
		return Record{}, nil, err
	}
	for last := (Record{}); ; {
		r, ok := get(name)
		if !ok {
			return Record{}, nil, fmt.Errorf("record %q: %w", name, ErrNotFound)
		}
		parts, err := l.open(r)
		if !errors.Is(err, keyring.ErrUnknownKey) || sameParts(r, last) {
			return r, parts, err
		}
		last = r
	}
}

func sameParts(a, b Record) bool {
	return a.Name == b.Name && slices.EqualFunc(a.Parts, b.Parts, slices.Equal)
}

func (l *link) open(r Record) ([][]byte, error) {
	parts := make([][]byte, len(r.Parts))
	for i, p := range r.Parts {
		if r.isPlain(i) {
			parts[i] = slices.Clone(p)
			continue
		}
		var err error
		if parts[i], err = l.keys.Decrypt(p, AAD(r.Name, i)); err != nil {
			return nil, fmt.Errorf("record %q, part %d: %w", r.Name, i, err)
		}
	}
	return parts, nil
}
