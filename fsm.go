package keyring

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// extensions marks the keyring's own log entries. raft carries it beside Log.Data, which
// belongs to the host alone: no bytes of a user can pose as a command.
var extensions = []byte("keyring/1")

// magic begins every snapshot that has a section of the keyring.
const magic = "keyring-snapshot"

// After the magic come the length of the keyring's section in 8 bytes, big-endian, its SHA-256,
// and the section: the JSON of internal/meta. The checksum is for the host whose snapshot
// store has none.
//
// maxSection bounds the keyring's section of a snapshot, far above 100,000 keys.
const maxSection = 1 << 30

// FSM is the keyring's metadata as a raft.FSM. Make it with NewFSM, give it to raft alone or
// through Mux, and to Config. Several Keyrings may follow one another on it, never two at a
// time.
type FSM struct {
	ring     atomic.Pointer[meta.Ring] // what is applied; never nil
	restores atomic.Uint64             // how often a snapshot was restored
	restored atomic.Pointer[restored]  // the last of these times; never nil, and never older than the ring
	configs  atomic.Uint64             // how often the raft configuration has changed
	changed  changes                   // woken on every change, and by the Keyring on its own
	events   atomic.Pointer[events]    // of the Keyring, for Config.Audit; nil without
	build    meta.Build                // what is read and written
	missed   atomic.Uint64             // index of an entry of a newer build, which is not in the ring; zero if there is none
	entry    atomic.Uint64             // index of the keyring's last entry since the last restore; zero if there is none
	configAt atomic.Uint64             // index of the raft configuration that came last; zero if none has since the start
	past     past                      // whether raft has given it all
	stray    atomic.Uint64             // index of an entry that raft has taken and applied to another FSM; zero if there is none
}

// NewFSM returns an empty FSM.
func NewFSM() *FSM {
	f := &FSM{build: meta.This}
	f.ring.Store(&meta.Ring{})
	f.restored.Store(&restored{})
	return f
}

// restored is a restore of a snapshot.
type restored struct {
	count  uint64 // from one on; zero if there was none
	active KeyID  // the active key of its ring, zero if it has none
	tokens plan.Snapshot
}

// Apply implements raft.FSM. Its response is nil or an error; an entry it does not know is
// an error and changes nothing. After one that a newer build wrote, the server makes no snapshots,
// and does not seal or act as the leader, until it runs a build that reads it.
func (f *FSM) Apply(l *raft.Log) any {
	f.past.see(l.Index)
	if !own(l) {
		return fmt.Errorf("%w: log entry %d is not the keyring's; a host with entries of its own needs Mux", ErrCorrupt, l.Index)
	}
	if l.Index <= f.past.loaded.Load() {
		return nil // the snapshot that Load took has it
	}
	defer f.changed.notify()
	defer f.entry.Store(l.Index) // after the ring: who reads this first finds a ring that has the entry
	entry, err := f.build.DecodeEntry(l.Data)
	if errors.Is(err, meta.ErrVersion) {
		f.missed.CompareAndSwap(0, l.Index)
		return fmt.Errorf("log entry %d is of a newer build: %w", l.Index, err)
	}
	if err != nil {
		return fmt.Errorf("%w: log entry %d: %w", ErrCorrupt, l.Index, err)
	}
	before := f.ring.Load()
	next, err := before.Apply(l.Index, entry.Commands)
	if err != nil {
		return err
	}
	f.ring.Store(next)
	if e := f.events.Load(); e != nil {
		e.add(l, entry.By, meta.Steps(before, next))
	}
	return nil
}

// own reports whether a log entry is a command of the keyring's.
func own(l *raft.Log) bool {
	return l.Type == raft.LogCommand && bytes.Equal(l.Extensions, extensions)
}

// whole is an error if there is an entry that this build could not apply, or something that raft has not
// given.
func (f *FSM) whole() error {
	if f.past.state.Load() == pastMissing {
		return ErrNotLoaded
	}
	if i := f.missed.Load(); i > 0 {
		return fmt.Errorf("log entry %d is of a newer build, and not applied", i)
	}
	return nil
}

// Snapshot implements raft.FSM. It refuses to leave out an entry: raft would drop that from its log,
// and no newer build could apply it any more.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.whole(); err != nil {
		return nil, err
	}
	return fsmSnapshot{ring: f.ring.Load(), build: f.build}, nil
}

// Restore implements raft.FSM.
func (f *FSM) Restore(rc io.ReadCloser) error {
	ring, rest, err := readSection(rc, f.build)
	if err != nil {
		return err
	}
	if ring == nil {
		return fmt.Errorf("%w: a snapshot without the keyring's section", ErrCorrupt)
	}
	n, err := io.Copy(io.Discard, rest)
	if err != nil {
		return fmt.Errorf("read keyring snapshot: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("%w: a snapshot with %d bytes that are not the keyring's", ErrCorrupt, n)
	}
	f.publish(ring)
	return nil
}

// StoreConfiguration implements raft.ConfigurationStore: who is a member is looked up in raft,
// all that is needed is to know when.
func (f *FSM) StoreConfiguration(index uint64, _ raft.Configuration) {
	f.configAt.Store(index)
	f.past.see(index)
	f.configs.Add(1)
	f.changed.notify()
}

func (f *FSM) publish(ring *meta.Ring) {
	r := &restored{count: f.restores.Load() + 1}
	if active := ring.Active(); active != nil {
		r.active = active.ID
	}
	for _, t := range ring.JoinTokens {
		r.tokens = append(r.tokens, t.ID)
	}
	f.entry.Store(0)
	f.restored.Store(r) // before the ring: who reads the ring first knows where it comes from
	f.ring.Store(ring)
	f.past.restored()
	f.stray.Store(0)
	f.missed.Store(0)
	f.restores.Add(1)
	f.changed.notify()
}

// Admit is the fence, for the host's own Apply: it returns nil if the ciphertext was sealed
// under the key that is active at this point of the log, and ErrStaleKey otherwise (ErrDecrypt
// for bytes that are no ciphertext of the keyring). A host that refuses what Admit refuses
// has nothing committed under a retired key after its retirement. It is deterministic, but
// only from the log index on where every server calls it: gate it on a field of your command
// if there are entries from before. It looks at the form and the key alone: what is damaged, or
// bound to another AAD, is admitted, and found when it does not open. An FSM that has no active
// key, as one that no raft feeds, returns ErrNotReady. One that lacks what raft applied before it
// started returns an error that matches ErrNotLoaded too: then the other servers' answer may be another,
// and the host must stop, not go on without the entry.
func (f *FSM) Admit(ciphertext []byte) error {
	id, err := CiphertextKeyID(ciphertext)
	if err != nil {
		return err
	}
	ring := f.ring.Load()
	if err := f.past.check(ring); err != nil {
		return err
	}
	switch active := ring.Active(); {
	case active == nil:
		return fmt.Errorf("%w: the FSM that is asked has no active key: is it the one that raft applies to?", ErrNotReady)
	case active.ID != id:
		return ErrStaleKey
	}
	return nil
}

// CiphertextKeyID tells which key a ciphertext names. It authenticates nothing.
func CiphertextKeyID(ciphertext []byte) (KeyID, error) {
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return KeyID{}, ErrDecrypt
	}
	return id, nil
}

// fsmSnapshot is the keyring's section, then the host's snapshot if there is one. Before the cluster is
// founded it is the host's alone: a server may get it that has no Mux yet.
type fsmSnapshot struct {
	ring  *meta.Ring
	build meta.Build
	app   raft.FSMSnapshot
}

// Persist implements raft.FSMSnapshot. The host's Persist closes the sink.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if s.app != nil && !founded(s.ring) {
		return s.persistApp(sink)
	}
	err := s.writeSection(sink)
	if err == nil && s.app != nil {
		return s.app.Persist(sink)
	}
	if err == nil {
		return sink.Close()
	}
	return errors.Join(err, sink.Cancel())
}

// Release implements raft.FSMSnapshot.
func (s fsmSnapshot) Release() {
	if s.app != nil {
		s.app.Release()
	}
}

// writeSection encodes the ring twice, to know its sum and size first: it may be large, and is never in
// memory as a whole.
func (s fsmSnapshot) writeSection(w io.Writer) error {
	var size counter
	sum := sha256.New()
	if err := s.build.EncodeRing(io.MultiWriter(sum, &size), s.ring); err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64([]byte(magic), uint64(size))
	out := bufio.NewWriterSize(w, 64<<10)
	out.Write(sum.Sum(head)) // Flush has the error
	if err := errors.Join(s.build.EncodeRing(out, s.ring), out.Flush()); err != nil {
		return fmt.Errorf("write keyring snapshot: %w", err)
	}
	return nil
}

type counter uint64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// headSize is the length of what comes before the keyring's section.
const headSize = len(magic) + 8 + sha256.Size

// readSection returns the ring of a snapshot and a reader of what follows. A snapshot from
// before the Mux has no section: the ring is nil and all of it follows.
func readSection(r io.Reader, build meta.Build) (*meta.Ring, io.Reader, error) {
	raw, err := readRaw(r)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.HasPrefix(raw, []byte(magic)) {
		return nil, io.MultiReader(bytes.NewReader(raw), r), nil
	}
	ring, err := ringOf(raw, build)
	return ring, r, err
}

// readRaw reads the keyring's section and what comes before it or, of a snapshot that has none, as much
// as it takes to know that.
func readRaw(r io.Reader) ([]byte, error) {
	head := make([]byte, headSize)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("read keyring snapshot: %w", err)
	}
	if !bytes.HasPrefix(head[:n], []byte(magic)) {
		return head[:n], nil
	}
	if n < len(head) {
		return nil, fmt.Errorf("%w: keyring snapshot cut short", ErrCorrupt)
	}
	size := binary.BigEndian.Uint64(head[len(magic):])
	if size > maxSection {
		return nil, fmt.Errorf("%w: keyring snapshot of %d bytes", ErrCorrupt, size)
	}
	raw, err := readGrowing(r, head, headSize+int(size))
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("%w: keyring snapshot damaged", ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("read keyring snapshot: %w", err)
	}
	return raw, nil
}

// readGrowing reads on after b until there are size bytes. It has no memory for more than four times of
// what has come: the size is only what a header says.
func readGrowing(r io.Reader, b []byte, size int) ([]byte, error) {
	for len(b) < size {
		n := len(b)
		room := make([]byte, min(size, max(256<<10, 4*n)))
		copy(room, b)
		if _, err := io.ReadFull(r, room[n:]); err != nil {
			return nil, err
		}
		b = room
	}
	return b, nil
}

// ringOf checks and decodes what readRaw has read.
func ringOf(raw []byte, build meta.Build) (*meta.Ring, error) {
	section := raw[headSize:]
	if sum := sha256.Sum256(section); !bytes.Equal(sum[:], raw[len(magic)+8:headSize]) {
		return nil, fmt.Errorf("%w: keyring snapshot damaged", ErrCorrupt)
	}
	ring, err := build.DecodeRing(section)
	if errors.Is(err, meta.ErrVersion) {
		return nil, fmt.Errorf("the snapshot is of a newer build: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return ring, nil
}

// proposeTimeout is how long a proposal may wait for raft to take it. Once taken it ends
// within the leader lease, committed or not; unless raft is shut down, which may leave it
// unanswered.
const proposeTimeout = 5 * time.Second

// MaxCommand is the most bytes of a command: of the keyring's own, and of those that Node.Apply takes.
const MaxCommand = 4 << 20

// commandTooLong is how many bytes it has. It matches ErrTooLong.
type commandTooLong int

func (n commandTooLong) Error() string {
	return fmt.Sprintf("a command of %d bytes, at most %d are taken", int(n), MaxCommand)
}

func (commandTooLong) Is(target error) bool { return target == ErrTooLong }

// propose is the one way to raft: the commands in one log entry, all of them or none. It
// returns what Apply answered. An error that matches ErrNotLeader may hide a commit. What
// version 1 of log entries does not have is refused unless every server has it.
func (k *Keyring) propose(ctx context.Context, cmds ...meta.Command) error {
	if v := k.fsm.build.Needs(cmds...); v > 1 {
		if err := k.allApply(ctx, v); err != nil {
			return err
		}
	}
	return k.fsm.propose(ctx, k.raft, cmds)
}

// encode returns the log entry, unless ctx has ended.
func (f *FSM) encode(ctx context.Context, cmds []meta.Command) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := f.build.EncodeEntry(meta.Entry{By: actorOf(ctx), Commands: cmds})
	if err != nil {
		return nil, err
	}
	if len(b) > MaxCommand {
		return nil, commandTooLong(len(b))
	}
	return b, nil
}

func (f *FSM) propose(ctx context.Context, r *raft.Raft, cmds []meta.Command) error {
	b, err := f.encode(ctx, cmds)
	if err != nil {
		return err
	}
	restores := f.restores.Load()
	future := r.ApplyLog(raft.Log{Data: b, Extensions: extensions}, proposeTimeout)
	if err := future.Error(); err != nil {
		return outcome(r, err)
	}
	if f.entry.Load() < future.Index() && f.restores.Load() == restores {
		f.stray.Store(future.Index())
		f.changed.notify()
		return errNotApplied
	}
	if slices.ContainsFunc(cmds, urgent) {
		r.Barrier(proposeTimeout)
	}
	if err, ok := future.Response().(error); ok {
		return err
	}
	return nil
}

// errNotApplied says that raft has committed and applied an entry of the keyring's, and this FSM was not
// given it.
var errNotApplied = errors.New("raft does not apply to this FSM: give it Config.FSM, alone or in a Mux, and put the Mux outermost")

// fed is an error if raft applies its log to another FSM. A leader knows that once it has proposed
// something. Others know it of one that is given nothing at all.
func (f *FSM) fed(r *raft.Raft) error {
	if stray := f.stray.Load(); stray > f.entry.Load() {
		return fmt.Errorf("log entry %d: %w", stray, errNotApplied)
	}
	if applied := r.AppliedIndex(); applied > 0 && f.past.first.Load() == 0 && f.restores.Load() == 0 {
		return fmt.Errorf("nothing of the log up to entry %d: %w", applied, errNotApplied)
	}
	return nil
}

// urgent reports whether followers should learn at once that the command has committed. An
// idle leader tells them only with its next entry or after CommitTimeout: so there is a next
// entry, and nobody waits for it. A new key need not be: the leader offers it to them, and
// the next entry is on its way.
func urgent(c meta.Command) bool { return c.Add == nil && c.Hold == nil }

// outcome turns an error of raft's into one of the keyring's.
func outcome(r *raft.Raft, err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return notLeader(r)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return fmt.Errorf("propose: %w", err)
}

func notLeader(r *raft.Raft) error {
	_, leader := r.LeaderWithID()
	return NotLeaderError{Leader: leader}
}

// changes wakes all who wait, each time something has changed. Take the channel first, then
// look at the state, then wait: no change is missed.
type changes struct {
	mu sync.Mutex // guards below
	ch chan struct{}
}

func (c *changes) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

func (c *changes) notify() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch != nil {
		close(c.ch)
		c.ch = nil
	}
}
