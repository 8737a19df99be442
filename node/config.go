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

// Config is what Start needs. With Dir and KEKs alone it is one server without a port.
type Config struct {
	// ID is this server's ID in the cluster and in its certificate. Empty means "server",
	// which is enough for a server alone.
	ID raft.ServerID
	// Dir holds the keystore, in Dir/keystore, and raft's log and snapshots, in Dir/raft.
	// It is created if it is missing.
	Dir string
	// KEKs wrap the key material. See keyring.Config.
	KEKs []keyring.KEK
	// OldKEKs open material that was wrapped under them. See keyring.Config.
	OldKEKs []keyring.KEK

	// Addr is the host:port at which this server listens and the others reach it: a name or an IP
	// address of this server's, and a port from 1 to 65535. Empty means that there are no others, and no
	// port. It may change between two starts: the server tells the leader. If most servers move at once,
	// Peers has to have the new addresses.
	Addr string
	// Advertise is the host:port at which the others reach this server, if that is not Addr: then Addr may be
	// 0.0.0.0:7900 or :7900, and everything said of Addr elsewhere, also in Peers, is about Advertise. Empty
	// means Addr.
	Advertise string
	// Listener, if set, is listened on in place of Addr. The Node closes it.
	Listener net.Listener
	// Cluster is the cluster's name in the certificates. Required with Addr.
	Cluster string
	// TLS returns this server's certificate, as keyring.TLSFiles does, with keyring://<cluster>/server/<id> as a
	// URI SAN and for both server and client authentication, and RootCAs. It is called for
	// each connection, and every 5 seconds, so that certificates can be replaced: connections end at
	// NotAfter of the certificates of both ends, and within 5 seconds when RootCAs, or ClientCAs, no longer vouch for the
	// other end. It must not block. Required with Addr.
	TLS func() (*tls.Config, error)
	// Peers are the addresses of the initial servers, which bootstrap the cluster, by ID. They include this server,
	// and are the same on each. Where they differ, Start waits, logs both, and has both in its
	// error when its context ends. Correct the wrong ones; the others go on by themselves. While this
	// server has no raft log: when each of them has answered that it has none either, the cluster is
	// bootstrapped; when one has, this server joins its cluster again. Later a server that does not answer at the address in
	// the raft configuration is tried at the one in Peers, for addresses can change: see Addr.
	Peers map[raft.ServerID]string
	// Join are servers of a cluster to join, if this server has no raft log, each as id@host:port, or as
	// host:port where there is a JoinToken. The cluster adds this server if it was a member under its ID
	// before, or was added with Node.AddServer, or has a JoinToken; it becomes a voter once it holds every
	// key. This server takes no other for one of the cluster but a server that proves the ID which is written here or in
	// Peers, or which such a server names as the leader, or that knows the JoinToken.
	Join []string
	// JoinToken is from Node.JoinToken of a member. Empty means none. It is looked at only while this server
	// has no raft log, where one that is malformed is an error, and may stay when it has ended.
	JoinToken string

	// App is the service's own FSM, which rides the same raft. Its Apply calls Admit of Keys and nothing else of the keyring, no
	// Decrypt above all: see keyring.Mux. Nil means none.
	App raft.FSM
	// Keys is the keyring's FSM, made with keyring.NewFSM: the one on which App calls Admit. Nil makes one,
	// for an App that does not.
	Keys *keyring.FSM
	// SnapshotEntries and SnapshotBytes are how many entries, or bytes of entries, raft's log has since the last snapshot
	// when raft makes the next one. Zero means 8192 entries, for which raft looks every two minutes, and 32 MiB, for
	// which it looks with each entry; or as many bytes as the last snapshot has, if those are more. Up to a quarter more than
	// SnapshotEntries are kept after a snapshot, but no more than half of SnapshotBytes or the size of the snapshot.
	// The file of the log never shrinks: what is dropped in it is used again. SnapshotEntries is at least 16,
	// SnapshotBytes 1 MiB. They may differ from server to server.
	SnapshotEntries int
	SnapshotBytes   int64
	// Data finds what was sealed, for it to be sealed again under another key: see keyring.Config. It may be asked
	// before Start has returned. RekeyGrace and RekeyRate are keyring.Config's too.
	Data       keyring.SealedData
	RekeyGrace time.Duration
	RekeyRate  int
	// Rotation is when keys rotate. Zero means every 30 days.
	Rotation keyring.RotationPolicy
	// Tokens is how tokens are signed and verified. Zero means RS256 and at most 24 hours.
	Tokens keyring.TokenPolicy
	// Backups are the backups that the leader makes by itself. The zero value makes none.
	Backups keyring.BackupSchedule
	// Audit is told of every step in the life of a key. Metrics receives the figures of this server every
	// MetricsEvery. See keyring.Config for the three.
	Audit        func(keyring.Event)
	Metrics      keyring.Metrics
	MetricsEvery time.Duration
	// Logger gets what raft and the keyring log. Nil logs nothing.
	Logger hclog.Logger

	wrapLog    func(raft.LogStore) raft.LogStore       // around raft's log, for tests
	wrapStable func(raft.StableStore) raft.StableStore // around the store of its term and vote, for tests
	pace       time.Duration                           // in place of raft's timeouts, for tests
	patience   time.Duration                           // in place of leaderPatience, for tests; zero is that
	unknown    []string                                // paths that are not answered, as by an older build, for tests
}

// filled returns the configuration with what Start puts where nothing is set.
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
		w.unless(len(c.Peers)+len(c.Join) == 0 && c.Listener == nil && c.Advertise == "", "Addr is empty, with Peers, Join, Listener or Advertise set")
	} else {
		w.unless(c.Cluster != "", "Cluster is empty, with Addr set")
		w.unless(c.TLS != nil, "TLS is nil, with Addr set")
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
		w.unless(err == nil, "Addr: %w; with one that is only listened at, set Advertise", err)
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
