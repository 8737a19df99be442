package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// Keyring is one server's part of the cluster's keyring. All methods are safe for concurrent
// use. After Close they return ErrClosed.
type Keyring struct {
	cfg   Config
	raft  *raft.Raft
	fsm   *FSM
	store *keystore.Store
	keks  *kek.Set

	peers    peer.Calls // what this server asks the others
	toLeader peer.Calls // what the leader answers only after most of the voters have confirmed that it leads

	observer *raft.Observer
	ctx      context.Context // ends with Close; for calls and goroutines, never for a Key's life
	cancel   context.CancelFunc
	loops    sync.WaitGroup // replicate, lead, watchClocks, catchUp, watchOthers, rekey, measure and confirmAll
	auditing sync.WaitGroup // audit, which has told all when Close returns

	gate    gate.Gate // of the calls that may block
	closing sync.Once

	// What the hot paths read. Each is replaced whole.
	sealing atomic.Pointer[sealing]
	opening atomic.Pointer[keystore.Table] // nil after Close
	tokens  atomic.Pointer[tokenKeys]
	term    atomic.Uint64 // the term whose barrier this leader has applied
	barrier atomic.Uint64 // what had been applied then

	confirmed atomic.Uint64 // the last restore of the FSM after which a majority has confirmed that it holds the active key
	caughtUp  caughtUp
	openedAt  time.Time
	hadLog    uint64 // the last index of raft's log at Open

	leader     *leader
	replicator *replicator

	reports  reports               // to the leader: what other servers hold
	offered  offered               // to this server, and being fetched
	turns    chan func(leads bool) // run by the leader's loop between its steps
	asking   chan struct{}         // has one while Config.Data is being asked
	creating chan struct{}         // has one while Rotate looks for a pending key, or makes one
	made     map[KeyID]knownTo     // by Rotate; guarded by creating
	removals atomic.Uint64         // how many servers this one has removed from raft's configuration as the leader
	watch    watch                 // for Status: how the other servers are
	halves   halves                // keys whose public half in the ring is another's
	signer   signerCache           // for Status: who signs backups
	moves    moves                 // for Status: how the moves of data go
	clocks   clocks

	confirming confirming // that this server leads
}

// sealing is the active key, to seal and to sign with, for as long as the ring and the term are
// the ones it was looked up in.
type sealing struct {
	ring *meta.Ring
	term uint64
	id   KeyID
	key  *seal.Key

	check     meta.CheckValue // in the ring, as what follows
	algorithm string
	public    []byte
	proved    atomic.Bool // a token was verified with them
}

// Open starts the keyring of this server on a raft that is running or about to. It refuses
// a configuration that can't work, with all that is wrong with it in one error, and a
// directory that can't be created, written or locked, with an error that names it. Bad key
// files never stop it. Open does not wait for a leader or a key: see WaitReady. ctx bounds
// opening only.
func Open(ctx context.Context, cfg Config) (*Keyring, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	fsys := cfg.fs
	if fsys == nil {
		if fsys, err = durable.OpenDir(cfg.Dir); err != nil {
			return nil, fmt.Errorf("keyring: %w", err)
		}
	}
	keks := kek.NewSet(cfg.KEKs, cfg.OldKEKs)
	store, err := openKeystore(ctx, fsys, keks, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("keyring: open keystore %s: %w", cfg.Dir, err)
	}
	k := &Keyring{cfg: cfg, raft: cfg.Raft, fsm: cfg.FSM, store: store, keks: keks, turns: make(chan func(leads bool)), asking: make(chan struct{}, 1), creating: make(chan struct{}, 1), made: map[KeyID]knownTo{}}
	k.peers = peer.Calls{Self: string(cfg.ID), Send: k.send}
	k.toLeader = peer.Calls{Self: string(cfg.ID), Send: k.sendToLeader}
	k.moves.bell, k.moves.metrics = &k.fsm.bell, cfg.Metrics
	k.openedAt, k.hadLog = time.Now(), cfg.Raft.LastIndex()
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.leader, k.replicator = &leader{Keyring: k}, newReplicator(k)
	k.refresh(k.view())
	k.observer = k.observe()
	k.loops.Go(k.replicate)
	k.loops.Go(k.lead)
	k.loops.Go(k.watchClocks)
	k.loops.Go(k.catchUp)
	k.loops.Go(k.watchOthers)
	if k.cfg.Data != nil {
		k.loops.Go(k.rekey)
	}
	if k.cfg.MetricsEvery > 0 {
		k.loops.Go(k.measure)
	}
	if k.cfg.Audit != nil {
		e := newEvents()
		k.fsm.events.Store(e)
		k.auditing.Go(func() { k.audit(e) })
	}
	return k, nil
}

// observe wakes the loops when leadership or the configuration changes, and notes who answers heartbeats.
// raft calls the filter itself, so there is no channel to fill and none to drain.
func (k *Keyring) observe() *raft.Observer {
	o := raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		k.watch.observed(o.Data)
		switch d := o.Data.(type) {
		case raft.PeerObservation:
			if d.Removed {
				k.removals.Add(1)
			}
			k.fsm.bell.ring()
		case raft.RaftState, raft.LeaderObservation:
			k.fsm.bell.ring()
		}
		return false
	})
	k.raft.RegisterObserver(o)
	return o
}

// Close ends the keyring on this server: it cancels the calls under way and waits for them,
// ends the goroutines, overwrites the key bytes that the library owns, and gives the
// directory back. Encrypt and Decrypt calls that began before may still end after it; they
// only use ciphers that the standard library has expanded, which are left to the collector.
// raft is the host's: shut it down after, for it may leave a call under way unanswered. A second
// Close waits for the first, and does nothing.
//
// What pays no heed to its context, as a KEK that hangs, and raft while its log store hangs, Close
// waits for for 10 seconds. Then it overwrites the keys and returns an error; the rest it does when that
// comes back.
func (k *Keyring) Close() (err error) {
	k.closing.Do(func() { err = k.close() })
	return err
}

func (k *Keyring) close() error {
	k.gate.Close(ErrClosed)
	k.raft.DeregisterObserver(k.observer)
	k.fsm.events.Store(nil)
	k.cancel()
	defer k.auditing.Wait()
	ended := make(chan error, 1)
	go func() { // ends before Close returns nil
		k.gate.Wait()
		k.loops.Wait()
		k.forgetKeys()
		ended <- k.store.Close()
	}()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		k.forgetKeys()
		k.store.Wipe()
		return fmt.Errorf("close: a call or a loop has not ended in %v: %w; the directory is given back when it has", closePatience, gate.ErrLeft)
	}
}

// closePatience is how long Close waits for calls that were left behind, and for the loops.
const closePatience = 10 * time.Second

// do runs an exported call that returns no more than an error. It ends with the caller's context and with
// Close.
func (k *Keyring) do(ctx context.Context, call func(context.Context) error) error {
	_, err := gate.Through(ctx, &k.gate, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

func (k *Keyring) forgetKeys() {
	k.sealing.Store(nil)
	k.opening.Store(nil)
}

// WaitReady returns once this server has caught up with a leader since Open, the active key is held
// here, each of Config.KEKs has answered and, if this server is the leader or alone, it may seal; or
// with ctx's error and what was missing. Older
// keys that are still on their way don't block it, and neither do OldKEKs that don't answer, which
// may be gone for good; Status has both. Once it has caught up it does not wait for others to elect a
// leader: calls for the leader only may be ErrNotLeader right after it, but for those of a Node.
func (k *Keyring) WaitReady(ctx context.Context) error {
	ctx, done, err := k.gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	for {
		changed := k.fsm.bell.wait()
		missing := k.notReady()
		if missing == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w: %w", ErrNotReady, missing, context.Cause(ctx))
		}
	}
}

func (k *Keyring) notReady() error {
	// What changes meanwhile is read once: read again, it could be nil by then.
	whole, fed := k.fsm.complete(), k.fsm.fed(k.raft)
	leads := k.raft.State() == raft.Leader
	term := k.term.Load() // before the ring, as in lookUpSealing
	v := k.view()
	active := v.ring.Active()
	switch {
	case whole != nil:
		return whole
	case fed != nil:
		return fed
	case !v.caughtUp:
		return k.caughtUp.err()
	case active == nil:
		return k.noKeyYet(v.ring)
	case !k.store.Holds(active):
		return fmt.Errorf("active key %s: %w", active.ID, errors.Join(ErrKeyMissing, k.store.FaultOf(active.ID)))
	case leads && !k.leads(term):
		return errors.New("the leader has not applied the barrier of its term")
	case leads && k.unconfirmed(v.ring):
		return k.leader.whyUnconfirmed()
	case !leads && slices.Equal(servers(k.raft), []string{string(k.cfg.ID)}):
		return errors.New("this server is alone and does not lead yet")
	}
	return k.keks.WrappingDown()
}

// Encrypt seals plaintext under the active key and binds it to aad; both may be empty or
// nil. Only the leader seals: elsewhere the error matches ErrNotLeader. On a new leader, before the
// first key, or after a snapshot was restored and until a majority of the voters has confirmed that it
// holds the active key, it is ErrNotReady. It does no I/O.
func (k *Keyring) Encrypt(plaintext, aad []byte) ([]byte, error) {
	if uint64(len(plaintext)) > seal.MaxPlaintext { // before asking for as much memory again
		return nil, ErrTooLong
	}
	return k.AppendEncrypt(make([]byte, 0, len(plaintext)+Overhead), plaintext, aad)
}

// Decrypt opens what Encrypt returned for the same aad, on any server that holds the key.
// The error is ErrDecrypt for bytes that are anything else, ErrKeyMissing for a key whose
// material has not arrived here, ErrUnknownKey for one that the keyring does not have, or under
// which nothing is sealed any more since it is deprecated and was not adopted, and ErrNotReady for one that this server does not know while it has not caught up since its start, or
// has heard from no leader for ten seconds. A record that was read before it moved has to be read
// again; copies of it elsewhere are for DecryptDeprecated. It does no I/O.
func (k *Keyring) Decrypt(ciphertext, aad []byte) ([]byte, error) {
	return k.AppendDecrypt(make([]byte, 0, max(0, len(ciphertext)-Overhead)), ciphertext, aad)
}

// Overhead is how many bytes longer a ciphertext is than its plaintext.
const Overhead = seal.Overhead

// AppendEncrypt is Encrypt with the ciphertext appended to dst, which must not overlap
// plaintext or aad: that is ErrOverlap. With Overhead bytes to spare beyond the plaintext
// it allocates nothing.
func (k *Keyring) AppendEncrypt(dst, plaintext, aad []byte) ([]byte, error) {
	s, err := k.active()
	if err != nil {
		return nil, err
	}
	out, err := s.key.Seal(dst, plaintext, aad)
	if err == seal.ErrClosed { // closed, or the key was dropped, in this moment
		if _, why := k.lookUpSealing(); why != nil {
			return nil, why
		}
		return nil, ErrNotReady
	}
	return out, err
}

// active returns the key to seal and to sign with, on a leader that may.
func (k *Keyring) active() (*sealing, error) {
	s := k.sealing.Load()
	if s == nil || s.ring != k.fsm.ring.Load() || !k.leads(s.term) {
		return k.lookUpSealing()
	}
	return s, nil
}

// leads reports whether this server is the leader of that term, as far as it knows: a
// leader that was cut off knows within the leader lease.
func (k *Keyring) leads(term uint64) bool {
	return k.raft.State() == raft.Leader && k.raft.CurrentTerm() == term
}

// lookUpSealing finds the active key, and keeps it while nothing changes.
func (k *Keyring) lookUpSealing() (*sealing, error) {
	if err := k.gate.Err(); err != nil {
		return nil, err
	}
	if k.raft.State() != raft.Leader {
		return nil, notLeader(k.raft)
	}
	// The term first: a ring that was read after it has at least what the barrier of that term had. With
	// an older one a new leader would seal under a key that was retired before its term.
	s := &sealing{term: k.term.Load()}
	if k.cfg.onLookUp != nil {
		k.cfg.onLookUp()
	}
	s.ring = k.fsm.ring.Load()
	active := s.ring.Active()
	if !k.leads(s.term) || active == nil {
		return nil, ErrNotReady
	}
	if k.unconfirmed(s.ring) {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, k.leader.whyUnconfirmed())
	}
	s.id, s.check, s.algorithm, s.public = active.ID, active.Check, active.Algorithm, active.Public
	var err error
	if s.key, err = k.sealer(active); err != nil {
		return nil, err
	}
	k.sealing.Store(s)
	return s, nil
}

// unconfirmed reports whether the active key came with a snapshot, and no majority of the voters has said
// since that it holds it. The snapshot may be from another day than their keystores, or of another
// cluster.
func (k *Keyring) unconfirmed(ring *meta.Ring) bool {
	restored, active := k.fsm.restored.Load(), ring.Active()
	return active != nil && restored.active == active.ID && k.confirmed.Load() != restored.count
}

// missing is why there is no material of a key: Close may have come in between.
func (k *Keyring) missing(id KeyID) error {
	if err := k.gate.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", ErrKeyMissing, id)
}

// sealer returns what seals and opens data under a key of the ring.
func (k *Keyring) sealer(key *meta.Key) (*seal.Key, error) {
	s, err := k.store.Sealer(key.ID, key.Check)
	if errors.Is(err, keystore.ErrNotHere) {
		return nil, k.missing(key.ID)
	}
	return s, err
}

// Keys returns the metadata of all keys as this server knows it, the newest first.
func (k *Keyring) Keys() []Key { return publicKeys(k.fsm.ring.Load()) }

// Changed returns a channel that is closed when something has changed that Keys, Status or
// WaitReady tell of: take it, look, then wait on it. It may be closed for less. Of a change of
// the raft configuration it tells if the FSM is in no Mux, or the host's FSM is a
// raft.ConfigurationStore.
func (k *Keyring) Changed() <-chan struct{} { return k.fsm.bell.wait() }

// Notify closes the channel of Changed, for a host whose Config.Problems returns something else than before.
func (k *Keyring) Notify() { k.fsm.bell.ring() }

// now is the time of the wall clock as the ring wants it. It is for times in the ring, in tokens and in files, and
// for what is compared with them. Waits in memory go by the monotonic clock, which nobody can set: mono.Now.
func (k *Keyring) now() time.Time { return k.cfg.clock().UTC().Round(0) }

// lookAgain is how long a loop waits, at most, for a time of the wall clock: that may be set, and the machine may
// sleep, without a timer noticing.
const lookAgain = 10 * time.Minute

// whenShown is when the wall clock will show a time, if nobody sets it, but not later than it is to be looked at
// again. Zero is never.
func (k *Keyring) whenShown(at time.Time) mono.Time {
	if at.IsZero() {
		return 0
	}
	return mono.Now().Add(min(lookAgain, at.Sub(k.now())))
}
