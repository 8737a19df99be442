package keyring

// Keyring: Open, Close, WaitReady, Encrypt, Decrypt, Keys, Changed and Notify.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/replication"
	"example.com/keyring/internal/seal"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/raft"
)

// Keyring is one server's part of the cluster's keyring. All methods are safe for concurrent
// use. After Close they return ErrClosed.
type Keyring struct {
	server *server

	// The parts. Each owns what it knows, and says it in status.
	caughtUp   *local.CaughtUp
	clocks     *local.Clocks
	watch      *local.Watch
	confirming *local.Confirming
	public     *local.PublicKeys
	leader     *lead.Leader
	rotator    *rotator
	remover    *remover
	replicator *replication.Replicator
	rekeyer    *rekeyer
	verifier   *verifier
	members    *members
	joinTokens *joinTokens
	signer     signerCache // of backups

	observer *raft.Observer
	end      context.CancelFunc // of the loops
	loops    sync.WaitGroup     // what run has started
	auditing sync.WaitGroup     // has told Config.Audit all when Close returns
	closing  sync.Once

	ciphers ciphers // not a pointer: Encrypt and Decrypt go by it
}

// server is what the parts of a Keyring know that are of this package: this server, and how it is configured.
type server struct {
	*local.Server
	cfg Config
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
	fsys, err := simulated.OpenDir(ctx, cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	keks := kek.NewSet(cfg.KEKs, cfg.OldKEKs)
	store, err := openKeystore(ctx, fsys, keks, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("keyring: open keystore %s: %w", cfg.Dir, err)
	}
	k := newKeyring(cfg, store, keks, simulated.Clock(ctx))
	k.ciphers.refresh(k.caughtUp.View())
	k.observer = k.observe()
	k.run()
	return k, nil
}

// newKeyring puts the parts together.
func newKeyring(cfg Config, store *keystore.Store, keks *kek.Set, clock func() time.Time) *Keyring {
	conf := local.Config{
		ID: cfg.ID, Raft: cfg.Raft, FSM: cfg.FSM.machine, Store: store, KEKs: keks, Logger: cfg.Logger, Tokens: cfg.tokens(), Clock: clock,
	}
	if cfg.Transport != nil {
		conf.Call = cfg.Transport.Call
	}
	here := local.NewServer(conf)
	s := &server{here, cfg}
	k := &Keyring{
		server: s, caughtUp: local.NewCaughtUp(here), clocks: local.NewClocks(here),
		watch: local.NewWatch(here), confirming: local.NewConfirming(here), public: local.NewPublicKeys(here),
	}
	k.verifier = &verifier{server: s, caughtUp: k.caughtUp, public: k.public}
	k.rekeyer = newRekeyer(s, k.clocks, k)
	k.remover = &remover{server: s, clocks: k.clocks, rekeyer: k.rekeyer}
	k.leader = lead.New(here, lead.Config{
		Policy: cfg.policy(), EveryBuild: cfg.EveryBuild, Algorithm: cfg.Tokens.Algorithm, Clocks: k.clocks, Watch: k.watch, CaughtUp: k.caughtUp,
	})
	k.rotator = newRotator(s, k.clocks, k.remover, k.leader.Maker)
	k.members, k.joinTokens = &members{s, k.leader}, &joinTokens{s, k.leader}
	k.ciphers.server, k.ciphers.caughtUp, k.ciphers.leader = s, k.caughtUp, k.leader
	k.replicator = replication.New(here, replication.Config{
		Undo: cfg.Rotation.Undo, CaughtUp: k.caughtUp, Clocks: k.clocks, Confirming: k.confirming, Public: k.public,
		ReportTo: k.leader.Report, Refresh: k.ciphers.refresh,
	})
	return k
}

// run starts the loops, which Close ends.
func (k *Keyring) run() {
	ctx, end := context.WithCancel(context.Background())
	k.end = end
	loops := []func(context.Context){
		k.replicator.Run, k.leader.Run, k.leader.Maker.Run, k.clocks.Run, k.caughtUp.Run, k.watch.Run, k.confirming.Run,
	}
	if k.server.cfg.Data != nil {
		loops = append(loops, k.rekeyer.run)
	}
	if k.server.cfg.MetricsEvery > 0 {
		loops = append(loops, (&gauges{k.server, k.caughtUp, k.clocks, k.statusOf}).run)
	}
	for _, loop := range loops {
		k.loops.Go(func() { loop(ctx) })
	}
	if k.server.cfg.Audit != nil {
		e := k.server.FSM.StartAudit()
		k.auditing.Go(func() { e.Tell(ctx, func(e fsm.Event) { k.server.cfg.Audit(Event(e)) }) })
	}
}

// observe wakes the loops when leadership or the configuration changes, and notes who answers heartbeats.
// raft calls the filter itself, so there is no channel to fill and none to drain.
func (k *Keyring) observe() *raft.Observer {
	o := raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		k.watch.Observed(o.Data)
		switch d := o.Data.(type) {
		case raft.PeerObservation:
			if d.Removed {
				k.rotator.removals.Add(1)
			}
			k.server.FSM.Notify()
		case raft.RaftState, raft.LeaderObservation:
			k.server.FSM.Notify()
		}
		return false
	})
	k.server.Raft.RegisterObserver(o)
	return o
}

// Close ends the keyring on this server: it cancels the calls under way and waits for them,
// ends the goroutines, overwrites the key bytes that the library owns, and gives the
// directory back. Encrypt and Decrypt calls that began before may still end after it; they
// only use ciphers that the standard library has expanded, which are left to the collector.
// raft is the host's: shut it down after, for it may leave a call under way unanswered. A second
// Close waits for the first, and does nothing.
//
// What ignores its context, as a KEK that hangs, and raft while its log store hangs, Close
// waits for for 10 seconds. Then it overwrites the keys and returns an error; the rest it does when that
// comes back.
func (k *Keyring) Close() (err error) {
	k.closing.Do(func() { err = k.close() })
	return err
}

func (k *Keyring) close() error {
	k.server.Gate.Close(ErrClosed)
	k.server.Raft.DeregisterObserver(k.observer)
	k.server.FSM.EndAudit()
	k.end()
	defer k.auditing.Wait()
	ended := make(chan error, 1)
	go func() { // ends before Close returns nil
		k.server.Gate.Wait()
		k.loops.Wait()
		k.ciphers.forget()
		ended <- k.server.Store.Close()
	}()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		k.ciphers.forget()
		k.server.Store.Wipe()
		return fmt.Errorf("close: a call or a loop has not ended in %v: %w; the directory is given back when it has", closePatience, gate.ErrLeft)
	}
}

// closePatience is how long Close waits for calls that were left behind, and for the loops.
const closePatience = 10 * time.Second

// do runs an exported call that returns nothing but an error. It ends with the caller's context and with
// Close.
func (k *Keyring) do(ctx context.Context, call func(context.Context) error) error {
	_, err := gate.Through(ctx, &k.server.Gate, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// WaitReady returns once this server has caught up with a leader since Open, the active key is held
// here, each of Config.KEKs has answered and, if this server is the leader or alone, it may seal; or
// with ctx's error and what was missing. Older
// keys that are still on their way don't block it, and neither do OldKEKs that don't answer, which
// may be gone for good; Status has both. Once it has caught up it does not wait for others to elect a
// leader: calls for the leader only may be ErrNotLeader right after it, but for those of a Node.
func (k *Keyring) WaitReady(ctx context.Context) error {
	ctx, done, err := k.server.Gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	for {
		changed := k.server.FSM.Changed()
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
	whole, fed := k.server.FSM.Complete(), k.server.FSM.Fed(k.server.Raft)
	leads := k.server.Raft.State() == raft.Leader
	term := k.server.Term.Load() // before the ring, as in lookUpSealing
	v := k.caughtUp.View()
	active := v.Ring.Active()
	switch {
	case whole != nil:
		return whole
	case fed != nil:
		return fed
	case !v.CaughtUp:
		return k.caughtUp.Err()
	case active == nil:
		return k.leader.NoKeyYet(v.Ring)
	case !k.server.Store.Holds(active):
		return fmt.Errorf("active key %s: %w", active.ID, errors.Join(ErrKeyMissing, k.server.Store.FaultOf(active.ID)))
	case leads && !k.server.Leads(term):
		return errors.New("the leader has not applied the barrier of its term")
	case leads && k.leader.Unconfirmed(v.Ring):
		return k.leader.WhyUnconfirmed()
	case !leads && slices.Equal(local.ServerIDs(k.server.Raft), []string{string(k.server.cfg.ID)}):
		return errors.New("this server is alone and does not lead yet")
	}
	return k.server.KEKs.WrappingDown()
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
	s, err := k.ciphers.active()
	if err != nil {
		return nil, err
	}
	out, err := s.key.Seal(dst, plaintext, aad)
	if err == seal.ErrClosed { // closed, or the key was dropped, in this moment
		if _, why := k.ciphers.lookUpSealing(); why != nil {
			return nil, why
		}
		return nil, ErrNotReady
	}
	return out, err
}

// Keys returns the metadata of all keys as this server knows it, the newest first.
func (k *Keyring) Keys() []Key { return keysOf(k.server.FSM.Ring()) }

// Changed returns a channel that is closed when something has changed that Keys, Status or
// WaitReady tell of: take it, look, then wait on it. It may be closed for less. Of a change of
// the raft configuration it tells if the FSM is in no Mux, or the host's FSM is a
// raft.ConfigurationStore.
func (k *Keyring) Changed() <-chan struct{} { return k.server.FSM.Changed() }

// Notify closes the channel of Changed, for a host whose Config.Problems returns something else than before.
func (k *Keyring) Notify() { k.server.FSM.Notify() }
