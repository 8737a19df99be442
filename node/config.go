package node

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Config configures Start. With only Dir and KEKs it is a single server without a port.
type Config struct {
	// ID is this server's ID in the cluster and in its certificate. Empty means "server", which is enough for
	// a single server.
	ID raft.ServerID
	// Dir contains the keystore, in Dir/keystore, and raft's log and snapshots, in Dir/raft. It is created if
	// it is missing.
	Dir string
	// KEKs wrap the key material. See keyring.Config.
	KEKs []keyring.KEK
	// OldKEKs unwrap material that was wrapped under them. See keyring.Config.
	OldKEKs []keyring.KEK

	// Addr is the host:port on which this server listens and at which the others reach it: a name or an IP
	// address of this server, and a port from 1 to 65535. Empty means that there is no port and no other
	// server. It may change between two starts: the server tells the leader. If most servers move at once,
	// Peers must have the new addresses.
	Addr string
	// Advertise is the host:port at which the others reach this server, if it differs from Addr. Then Addr
	// may be 0.0.0.0:7900 or :7900, and whatever these docs say of Addr, including in Peers, applies to
	// Advertise. Empty means Addr.
	Advertise string
	// Listener, if set, is used instead of listening on Addr. The Node closes it.
	Listener net.Listener
	// Cluster is the cluster's name in the certificates. Required with Addr.
	Cluster string
	// TLS returns this server's certificate and RootCAs, as keyring.TLSFiles does. The certificate has
	// keyring://<cluster>/server/<id> as a URI SAN, and is for both server and client authentication. TLS is
	// called for each connection and every 5 seconds, so that certificates can be replaced. A connection ends
	// when the certificate of either end expires, and within 5 seconds when RootCAs or ClientCAs no longer
	// vouch for the other end. TLS must not block. Required with Addr.
	TLS func() (*tls.Config, error)
	// Peers are the addresses, by ID, of the initial servers, including this one. They bootstrap the cluster,
	// and Peers must be the same on each. If two servers differ, Start waits, logs both versions, and returns
	// them in its error when its context ends. Correct the wrong ones; the other servers then go on by
	// themselves.
	//
	// A server without a raft log asks all Peers. Once each has answered that it has no log either, they
	// bootstrap the cluster. If one has a log, this server joins its cluster again. Later, if a server does
	// not answer at its address in the raft configuration, its address in Peers is tried, because addresses
	// can change: see Addr.
	Peers map[raft.ServerID]string
	// Join lists servers of a cluster that this server is to join if it has no raft log: each as
	// id@host:port, or as host:port with a JoinToken. The cluster adds this server if it was a member under
	// its ID before, was added with Node.AddServer, or has a JoinToken. It gets a vote once it holds every
	// key. This server trusts only a server that proves an ID from Join or Peers, one that such a server
	// names as the leader, or one that knows the JoinToken.
	Join []string
	// JoinToken is the result of Node.JoinToken on a member. Empty means none. It is read only while this
	// server has no raft log; then a malformed token is an error. You need not delete it after it has ended.
	JoinToken string

	// App is the service's own FSM, which shares the raft. Its Apply may call Admit of Keys, and nothing else
	// of the keyring, above all not Decrypt: see keyring.Mux. Nil means none.
	App raft.FSM
	// Keys is the keyring's FSM from keyring.NewFSM, on which App calls Admit. Nil makes one, for an App that
	// does not.
	Keys *keyring.FSM
	// SnapshotEntries and SnapshotBytes limit raft's log since the last snapshot: when it has that many
	// entries, or bytes of entries, raft makes the next snapshot. Zero means 8192 entries, which raft checks
	// every two minutes, and 32 MiB, which it checks with each entry; or the size of the last snapshot if
	// that is larger. After a snapshot up to a quarter more than SnapshotEntries are kept, but no more than
	// half of SnapshotBytes or the size of the snapshot. The log file never shrinks: its free space is used
	// again. SnapshotEntries is at least 16, and SnapshotBytes at least 1 MiB. They may differ from server to
	// server.
	SnapshotEntries int
	SnapshotBytes   int64
	// Data finds the ciphertexts that have to be re-encrypted: see keyring.Config, also for RekeyGrace and
	// RekeyRate. It may be called before Start has returned.
	Data       keyring.SealedData
	RekeyGrace time.Duration
	RekeyRate  int
	// Rotation says when keys rotate. Zero means every 30 days.
	Rotation keyring.RotationPolicy
	// Tokens says how tokens are signed and verified. Zero means RS256 and at most 24 hours.
	Tokens keyring.TokenPolicy
	// Backups schedules the backups that the leader makes by itself. Zero makes none.
	Backups keyring.BackupSchedule
	// Audit receives every keyring.Event. Metrics receives the metrics of this server every MetricsEvery. See
	// keyring.Config for all three.
	Audit        func(keyring.Event)
	Metrics      keyring.Metrics
	MetricsEvery time.Duration
	// Logger receives the log lines of raft and the keyring. Nil logs nothing.
	Logger hclog.Logger

	wrapLog    func(raft.LogStore) raft.LogStore       // around raft's log, for tests
	wrapStable func(raft.StableStore) raft.StableStore // around the store of its term and vote, for tests
	pace       time.Duration                           // in place of raft's timeouts, for tests
	patience   time.Duration                           // in place of leaderPatience, for tests; zero is that
	unknown    []string                                // paths that are not answered, as by an older build, for tests
}

// filled returns the configuration with the defaults of Start.
func (c Config) filled() Config {
	if c.ID == "" {
		c.ID = "server"
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Keys == nil {
		c.Keys = keyring.NewFSM()
	}
	return c
}

// advertised is the address at which the others reach this server.
func (c Config) advertised() string { return cmp.Or(c.Advertise, c.Addr) }

// check says everything that is wrong with the configuration.
func (c Config) check() error {
	var w wrongs
	w.unless(c.Dir != "", "Dir is empty")
	w.unless(c.SnapshotEntries == 0 || c.SnapshotEntries >= 16, "SnapshotEntries is %d, want at least 16", c.SnapshotEntries)
	w.unless(c.SnapshotBytes == 0 || c.SnapshotBytes >= 1<<20, "SnapshotBytes is %d, want at least 1 MiB", c.SnapshotBytes)
	if c.Addr == "" {
		w.unless(len(c.Peers)+len(c.Join) == 0 && c.Listener == nil && c.Advertise == "", "Addr is empty, but Peers, Join, Listener or Advertise is set")
	} else {
		w.unless(c.Cluster != "", "Addr is set, but Cluster is empty")
		w.unless(c.TLS != nil, "Addr is set, but TLS is nil")
		c.checkAddresses(&w)
		addr, named := c.Peers[c.ID]
		w.unless(len(c.Peers) == 0 || named && addr == c.advertised(), "Peers does not name this server, %s, with Addr %s", c.ID, c.advertised())
	}
	if err := errors.Join(append(w, c.keyring().Check())...); err != nil {
		return fmt.Errorf("node configuration: %w", err)
	}
	return nil
}

// checkAddresses requires addresses at which other servers can be reached.
func (c Config) checkAddresses(w *wrongs) {
	err := peer.CheckAddress(c.advertised())
	if c.Advertise == "" {
		w.unless(err == nil, "Addr: %w; set Advertise if this server only listens on Addr", err)
	} else {
		w.unless(err == nil, "Advertise: %w", err)
		_, _, err = net.SplitHostPort(c.Addr)
		w.unless(err == nil || c.Listener != nil, "Addr: %w", err)
	}
	named := map[string]raft.ServerID{}
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		err := peer.CheckAddress(c.Peers[id])
		w.unless(err == nil, "Peers: server %s: %w", id, err)
		other, taken := named[c.Peers[id]]
		w.unless(!taken, "Peers: servers %s and %s have the same address, %s", other, id, c.Peers[id])
		named[c.Peers[id]] = id
	}
	for _, entry := range c.Join {
		_, err := port.ParseCandidate(entry)
		w.unless(err == nil, "Join: %w", err)
	}
}

// wrongs is everything that is wrong with a configuration.
type wrongs []error

func (w *wrongs) unless(ok bool, format string, args ...any) {
	if !ok {
		*w = append(*w, fmt.Errorf(format, args...))
	}
}

// keyring is what the keyring is opened with, without its raft.
func (c Config) keyring() keyring.Config {
	return keyring.Config{
		Dir: filepath.Join(c.Dir, "keystore"), ID: c.ID, FSM: c.Keys, KEKs: c.KEKs, OldKEKs: c.OldKEKs,
		Rotation: c.Rotation, Tokens: c.Tokens, Data: c.Data, RekeyGrace: c.RekeyGrace, RekeyRate: c.RekeyRate, Backups: c.Backups,
		Audit: c.Audit, Metrics: c.Metrics, MetricsEvery: c.MetricsEvery, EveryBuild: true, Logger: c.Logger.Named("keyring"),
	}
}

// cluster is what raft and the port are started with.
func (c Config) cluster() cluster.Config {
	conf := cluster.Config{
		ID: c.ID, Dir: filepath.Join(c.Dir, "raft"), FSM: c.Keys, Section: c.Keys.CheckSnapshot, Logger: c.Logger, WrapLog: c.wrapLog, WrapStable: c.wrapStable, Pace: c.pace,
		Addr: c.advertised(), Listen: c.Addr, Listener: c.Listener, Cluster: c.Cluster, TLS: c.TLS,
		Limits: cluster.LogLimits{Entries: uint64(c.SnapshotEntries), Bytes: c.SnapshotBytes},
		Peers:  c.Peers, JoinToken: c.JoinToken, Errors: wireErrors,
	}
	if c.App != nil {
		conf.FSM = keyring.Mux(c.Keys, c.App)
	}
	for _, entry := range c.Join {
		if candidate, err := port.ParseCandidate(entry); err == nil { // as check has seen
			conf.Join = append(conf.Join, candidate)
		}
	}
	return conf
}
