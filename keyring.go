package keyring

// Keyring: Open, Close, Keys, Changed, Notify, Status and ServePeer.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/replication"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Keyring is one server's part of the cluster's keyring. All methods are safe for concurrent use. After Close
// they return ErrClosed.
type Keyring struct {
	server *server

	// The parts. Each owns what it knows, and says it in status.
	caughtUp   *local.CaughtUp
	clocks     *local.Clocks
	watch      *local.Watch
	confirming *local.Confirming
	public     *local.PublicKeys
	leader     *lead.Leader
	backups    *lead.Backups
	schedule   *lead.Schedule // nil if Config.Backups is zero
	rotator    *rotator
	remover    *remover
	replicator *replication.Replicator
	rekeyer    *rekeyer
	verifier   *verifier
	signer     backup.SignerCache
	since      atomic.Pointer[map[cause]time.Time] // when each problem of the last Status was first seen
	unready    atomic.Int64                        // the mono.Time since when this server is not ready; zero if it is

	hostCalls *hostCalls
	host      hostProblems

	observer *raft.Observer
	end      context.CancelFunc // of the loops
	loops    sync.WaitGroup     // what run has started
	auditing sync.WaitGroup     // has told Config.Audit all when Close returns
	closing  sync.Once

	ciphers ciphers // not a pointer: Encrypt and Decrypt go by it
}

// Open starts the keyring of this server on a raft that runs or is about to. An invalid configuration is
// rejected with all that is wrong in one error. A directory that can't be created, written or locked is an
// error that names it. Bad key files never stop Open. It does not wait for a leader or a key: see WaitReady.
// If a KEK is slow, Open loads the newest key files for a few seconds, and loads the others in the
// background. Until then data under those keys is ErrKeyMissing. ctx bounds only the call to Open.
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
	store, err := openKeystore(ctx, fsys, keks, cfg.Logger, keystore.OpenNewest)
	if err != nil {
		return nil, fmt.Errorf("keyring: open keystore %s: %w", cfg.Dir, err)
	}
	k := newKeyring(cfg, store, keks, simulated.Clock(ctx))
	k.ciphers.refresh(k.caughtUp.View())
	k.observer = k.observe()
	k.run()
	return k, nil
}

// openStore is keystore.Open or keystore.OpenNewest.
type openStore func(context.Context, durable.FS, *kek.Set, hclog.Logger) (*keystore.Store, error)

// openKeystore opens a keystore, and ends with ctx. If ctx ends while a KEK hangs, the directory is unlocked
// as soon as the KEK returns.
func openKeystore(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger, open openStore) (*keystore.Store, error) {
	return gate.AwaitOr(ctx, func() (*keystore.Store, error) {
		return open(ctx, fsys, keks, log)
	}, func(s *keystore.Store) { s.Close() })
}

// newKeyring puts the parts together.
func newKeyring(cfg Config, store *keystore.Store, keks *kek.Set, clock func() time.Time) *Keyring {
	conf := local.Config{
		ID: cfg.ID, Raft: cfg.Raft, FSM: cfg.FSM.machine, Store: store, KEKs: keks, Logger: cfg.Logger, Tokens: cfg.tokens(), Clock: clock,
		Policies: cfg.policies(),
	}
	calls := &hostCalls{}
	if cfg.Transport != nil {
		conf.Call = calls.carried(cfg.Transport)
	}
	store.OnHang(conf.FSM.Notify)
	here := local.NewServer(conf)
	clocks := local.NewClocks(here)
	s := &server{here, calls.watched(cfg)}
	k := &Keyring{
		server: s, hostCalls: calls, host: hostProblems{ask: cfg.Problems, calls: calls, gate: &here.Gate}, caughtUp: local.NewCaughtUp(here), clocks: clocks,
		watch: local.NewWatch(here, clocks), confirming: local.NewConfirming(here), public: local.NewPublicKeys(here),
	}
	k.verifier = &verifier{server: s, issuers: cfg.Tokens.issuers(), caughtUp: k.caughtUp, public: k.public}
	k.rekeyer = newRekeyer(s, k.clocks, k)
	k.remover = &remover{server: s, clocks: k.clocks, rekeyer: k.rekeyer}
	k.leader = lead.New(here, lead.Config{
		Policy: cfg.policy(), EveryBuild: cfg.EveryBuild, Algorithm: cfg.Tokens.Algorithm, Clocks: k.clocks, Watch: k.watch, CaughtUp: k.caughtUp,
	})
	k.backups = lead.NewBackups(here)
	k.schedule = newSchedule(s, k.backups, k.clocks)
	k.rotator = newRotator(s, k.clocks, k.remover, k.leader.Maker)
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
		k.watchReady,
	}
	if k.server.cfg.Data != nil {
		loops = append(loops, k.rekeyer.run)
	}
	if k.schedule != nil {
		loops = append(loops, k.schedule.Run)
	}
	if k.server.cfg.MetricsEvery > 0 {
		loops = append(loops, (&gauges{k.server.Server, k.server.cfg.Metrics, k.server.cfg.MetricsEvery, k.look}).run)
	}
	for _, loop := range loops {
		k.loops.Go(func() { loop(ctx) })
	}
	if k.server.cfg.Audit != nil {
		e := k.server.FSM.StartAudit()
		k.auditing.Go(func() { e.Tell(ctx, func(e fsm.Event) { k.server.cfg.Audit(eventOf(e)) }) })
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

// Close ends the keyring on this server: it cancels the calls in progress and waits for them, ends the
// goroutines, overwrites the key bytes that the library owns, and unlocks the directory. Calls to Encrypt and
// Decrypt that began before may still succeed. Their ciphers were expanded by the standard library, and are
// left to the garbage collector. The host shuts down raft after Close, because raft may leave a call in
// progress unanswered. A second Close waits for the first, and does nothing.
//
// Some calls may ignore their context: a KEK that hangs, raft while its log store hangs, a call of
// Config.Audit. Close waits 10 seconds for them. Then it overwrites the keys and returns an error that names
// the host's functions that have not returned. It does the rest when they return.
func (k *Keyring) Close() (err error) {
	k.closing.Do(func() { err = k.close() })
	return err
}

func (k *Keyring) close() error {
	k.server.Gate.Close(ErrClosed)
	k.server.Raft.DeregisterObserver(k.observer)
	k.server.FSM.EndAudit()
	k.end()
	ended := make(chan error, 1)
	go func() { // ends before Close returns nil
		k.server.Gate.Wait()
		k.loops.Wait()
		k.ciphers.forget()
		err := k.server.Store.Close()
		k.auditing.Wait()
		ended <- err
	}()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	for told := k.hostCalls.audited.Load(); ; timer.Reset(closePatience) {
		select {
		case err := <-ended:
			return err
		case <-timer.C:
		}
		if n := k.hostCalls.audited.Load(); n > told { // Config.Audit is slow, and has much to be told
			told = n
			continue
		}
		k.ciphers.forget()
		k.server.Store.Wipe()
		return k.hasNotEnded()
	}
}

// hasNotEnded is the error of a Close that has given up.
func (k *Keyring) hasNotEnded() error {
	what := "a call or a loop"
	if host := k.hostCalls.Names(); len(host) > 0 {
		what = strings.Join(host, ", ")
	}
	return fmt.Errorf("close: %s has not ended in %v: %w; the directory stays locked until all have", what, closePatience, gate.ErrLeft)
}

// closePatience is how long Close waits for calls that were left behind, and for the loops.
const closePatience = 10 * time.Second

// do runs an exported call that returns nothing but an error. It ends with the caller's context and with
// Close.
func (k *Keyring) do(ctx context.Context, call func(context.Context) error) error {
	_, err := gate.Through(ctx, &k.server.Gate, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// led runs an exported call that needs a leader. It ends with the caller's context and with Close, and, if
// that context has no deadline, when this server has been without a leader for half a minute: see
// local.WhileLed.
func led[T any](ctx context.Context, k *Keyring, call func(context.Context) (T, error)) (T, error) {
	return local.WhileLed(ctx, k.server.Server, func(ctx context.Context) (T, error) {
		return gate.Through(ctx, &k.server.Gate, call)
	})
}

// doLed is led for a call that returns nothing but an error.
func (k *Keyring) doLed(ctx context.Context, call func(context.Context) error) error {
	_, err := led(ctx, k, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// Keys returns the metadata of all keys that this server knows, newest first. A follower may be behind the
// leader: usually by a moment, and by more while it can't reach the leader. Then a new key may be absent, and
// a removed key present. Ask the leader for the latest; Status.CaughtUp and Status.LastContact say how
// current this server is.
func (k *Keyring) Keys() []Key { return keysOf(k.server.FSM.Ring()) }

// Changed returns a channel that is closed after a change in the result of Keys, Status or WaitReady. Get the
// channel, read the results, then wait on the channel. It may also be closed without a change. Changes of the
// raft configuration close it only if the FSM is in no Mux, or the host's FSM is a raft.ConfigurationStore.
func (k *Keyring) Changed() <-chan struct{} { return k.server.FSM.Changed() }

// Notify closes the channel of Changed. A host calls it when the result of its Config.Problems has changed.
func (k *Keyring) Notify() { k.server.FSM.Notify() }

// Status returns the status of the keyring, as far as this server knows it. It does no I/O.
func (k *Keyring) Status(ctx context.Context) (Status, error) {
	_, done, err := k.server.Gate.Enter(ctx)
	if err != nil {
		return Status{}, err
	}
	defer done()
	o, s := k.look()
	s.Keys = keysOf(o.Ring)
	return s, nil
}

// EncodeStatus returns the leader's Status as bytes, for DecodeStatus on the server that asked for it. Keys
// and NoBackup are not included. Leader only.
func (k *Keyring) EncodeStatus() ([]byte, error) {
	if err := k.server.Leading(); err != nil {
		return nil, err
	}
	_, s := k.look()
	s.NoBackup = nil
	return packStatus(s)
}

// DecodeStatus decodes the leader's Status from the result of EncodeStatus, also from an older or newer
// build. It adds Keys and NoBackup as this server knows them. It is safe on bytes from a server that lies.
func (k *Keyring) DecodeStatus(b []byte) (Status, error) {
	if err := k.server.Gate.Err(); err != nil {
		return Status{}, err
	}
	s, err := unpackStatus(b)
	if err != nil {
		return Status{}, fmt.Errorf("status: the leader's answer: %w", err)
	}
	v := k.caughtUp.View()
	s.Keys, s.NoBackup = keysOf(v.Ring), noBackup(v, k.server.Raft.GetConfiguration().Configuration().Servers)
	return s, nil
}

// ServePeer answers a request that another server's Transport has carried here. from must be the ID that the
// host authenticated, never an ID from the request: anyone who can pose as a server of the raft configuration
// gets every key. Servers outside the configuration are refused. Return the answer unchanged. An error
// matches ErrClosed or is that of ctx; then there is no answer.
func (k *Keyring) ServePeer(ctx context.Context, from raft.ServerID, request []byte) ([]byte, error) {
	return gate.Through(ctx, &k.server.Gate, func(ctx context.Context) ([]byte, error) {
		if !slices.Contains(local.ServerIDs(k.server.Raft), string(from)) {
			return (&peer.Refusal{Code: peer.NotMember}).Encode()
		}
		return k.handlers().Answer(ctx, string(from), request)
	})
}

// handlers say what this server answers to each kind of request.
func (k *Keyring) handlers() peer.Handlers {
	return peer.Handlers{
		Self:    string(k.server.cfg.ID),
		Cluster: func() meta.ClusterID { return k.server.FSM.Ring().Cluster },
		Hello:   k.server.ServeHello,
		Fetch:   k.server.ServeFetch,
		Report:  k.leader.ServeReport,
		Held:    k.server.HeldHere,
		Offer:   k.replicator.TakeOffer,
		Removed: k.replicator.ServeRemoved,
		State:   k.confirming.State,
		Leave:   k.members().ServeLeave,
	}
}
