package node_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// theft is a cluster of four, of which s3 was stolen, and the thief.
type theft struct {
	*keyringtest.Nodes
	t       *testing.T
	ctx     context.Context
	dir     string          // s3's
	tokens  []string        // that s3 knew, the first for itself
	sealed  []byte          // before
	thief   *node.Node      // all that s3 had, as a cluster of its own, with s3's address
	forged  []byte          // sealed by the thief
	old     []keyring.KeyID // keys of that day
	client  *peer.Client    // with s3's certificate
	present []byte          // sealed after the rotation
}

// TestStolenServerStepByStep goes through docs/stolen-server.md with a thief who has everything that the server
// had. Each step of the text has a check here, and each check a step.
func TestStolenServerStepByStep(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/stolen-server.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	var steps []string
	for _, m := range regexp.MustCompile(`(?m)^## (Step \d+: .*)$`).FindAllStringSubmatch(text, -1) {
		steps = append(steps, m[1])
	}
	checks := []struct {
		step  string
		check func(*theft)
	}{
		{"Step 1: remove it", (*theft).remove},
		{"Step 2: rotate as after a compromise", (*theft).rotate},
		{"Step 3: wait until the keys that it had are gone", (*theft).removeKeys},
		{"Step 4: make a backup, and destroy the old ones that you can do without", (*theft).backup},
		{"Step 5: replace it", (*theft).replace},
		{"Step 6: take it out of the configuration of the others", (*theft).forgetPeer},
	}
	var checked []string
	for _, c := range checks {
		checked = append(checked, c.step)
	}
	if !slices.Equal(steps, checked) {
		t.Fatalf("the text has %q, and there are checks for %q", steps, checked)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s := stealServer(t, ctx)
	for _, c := range checks {
		if c.check(s); t.Failed() {
			t.Fatalf("in %s", c.step)
		}
	}
}

// stealServer has a cluster live, takes all that s3 has, and lets the thief run it.
func stealServer(t *testing.T, ctx context.Context) *theft {
	t.Helper()
	s := &theft{t: t, ctx: ctx, Nodes: keyringtest.StartNodes(t, 4, func(cfg *node.Config) { cfg.Data = keyring.NoData{} })}
	s.Ready(ctx)
	s3 := s.Nodes.Nodes["s3"]
	s.old = append(s.old, s3.Keyring().Keys()[0].ID)
	keyringtest.AwaitHolders(s3.Keyring(), s.old[0], 4)
	for _, id := range []raft.ServerID{"s3", "s9"} {
		s.tokens = append(s.tokens, keyringtest.JoinToken(t, s3, id, 0))
	}
	var err error
	if s.sealed, err = s3.Encrypt(ctx, []byte("before"), nil); err != nil {
		t.Fatal(err)
	}
	if err := node.SnapshotRaft(s3); err != nil {
		t.Fatal(err)
	}
	closeNode(t, s3)
	delete(s.Nodes.Nodes, "s3")
	s.dir = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(s.dir, os.DirFS(s.Dirs["s3"])); err != nil {
		t.Fatal(err)
	}
	s.client = peer.NewClient(&peer.Dialer{Cluster: "test", TLS: s.CA.Source("keyring://test/server/s3", nil)})
	t.Cleanup(s.client.Close)
	return s
}

// runThief lets the thief have a cluster of its own of what it has, where s3 was.
func (s *theft) runThief() {
	cfg := s.Config("s3")
	cfg.Dir = s.dir
	if _, err := node.Recover(s.ctx, cfg, node.RecoverOptions{Force: true}); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if cfg.Listener, err = net.Listen("tcp", s.Addrs["s3"]); err != nil {
		s.t.Fatal(err)
	}
	if s.thief, err = node.Start(s.ctx, cfg); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.thief.Close() })
	if err := s.thief.Keyring().WaitReady(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	if s.forged, err = s.thief.Encrypt(s.ctx, []byte("forged"), nil); err != nil {
		s.t.Fatal(err)
	}
}

func (s *theft) member() *node.Node { return s.Nodes.Nodes["s1"] }

// decrypts reports whether a server opens something from memory.
func (s *theft) decrypts(n *node.Node, sealed []byte) bool {
	_, err := n.Keyring().Decrypt(sealed, nil)
	return err == nil
}

func (s *theft) want(what string, got, want bool) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %t, want %t", what, got, want)
	}
}

// refused makes a call by the thief's certificate, until it is answered or refused: a server that has just learnt of
// the removal closes the connection, once.
func (s *theft) refused(id raft.ServerID, path string, body []byte) (err error) {
	for range 5 {
		_, err = s.client.Call(s.ctx, string(id), s.Addrs[id], path, body)
		if r := (*peer.Refusal)(nil); err == nil || errors.As(err, &r) {
			return err
		}
	}
	return err
}

// stays requires that the thief is let in nowhere: by its certificate, by tokens of its day, and for no call.
func (s *theft) stays() {
	s.t.Helper()
	hello, err := peer.Request{Hello: &peer.HelloRequest{}}.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	for id := range s.Nodes.Nodes {
		for _, path := range []string{
			"/keyring", "/node/encrypt", "/node/decrypt", "/node/sign", "/node/rotate", "/node/remove", "/node/status",
			"/node/add-server", "/node/remove-server", "/node/join-token", "/node/withdraw-join-token",
			"/node/sign-typed", "/node/adopt", "/node/confirm-backup",
		} {
			if err := s.refused(id, path, hello); refusal(err) != peer.NotMember {
				s.t.Errorf("%s of %s: %v", path, id, err)
			}
		}
		d := &peer.Dialer{Cluster: "test", TLS: s.CA.Source("keyring://test/server/s3", nil)}
		if c, err := d.Dial(s.ctx, string(id), s.Addrs[id], peer.ALPNRaft); err == nil {
			c.Close()
			s.t.Errorf("%s talks raft to it", id)
		}
	}
	for _, token := range append(s.tokens, "") {
		cfg := s.Newcomer("s3")
		cfg.JoinToken = token
		wantOut(s.t, s.ctx, cfg, "JoinToken, or AddServer")
	}
	for _, server := range node.RaftServers(s.member()) {
		if server.ID == "s3" {
			s.t.Error("it is a member")
		}
	}
}

func (s *theft) remove() {
	at := s.Addrs["s3"]
	if err := s.member().RemoveServer(s.ctx, "s3", keyring.RemoveServerOptions{}); err != nil {
		s.t.Fatal(err)
	}
	for _, n := range s.Nodes.Nodes { // who is behind learns of it with the log
		s.Await(s.ctx, n, "told", func(st keyring.Status) bool {
			return !slices.ContainsFunc(st.Servers, func(server raft.Server) bool { return server.ID == "s3" })
		})
	}
	s.stays()
	s.Addrs["s3"] = at
	s.runThief()
	after, err := s.member().Encrypt(s.ctx, []byte("after"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.want("the thief opens what was sealed before", s.decrypts(s.thief, s.sealed), true)
	s.want("the thief opens what is sealed now", s.decrypts(s.thief, after), true)
	s.want("a server opens what the thief seals", s.decrypts(s.member(), s.forged), true)
	s.want("a token that the thief signs is good", s.member().Keyring().Verify(s.signed(), keyring.Expect{Audience: []string{"me"}}) == nil, true)
	cfg := s.Newcomer("s6")
	if err := s.thief.AddServer(s.ctx, "s6", cfg.Addr); err != nil {
		s.t.Fatal(err)
	}
	cfg.Join, cfg.JoinToken = []string{at}, keyringtest.JoinToken(s.t, s.member(), "s6", 0)
	wantOut(s.t, s.ctx, cfg, "JoinToken, or AddServer")
}

func (s *theft) signed() string {
	token, err := s.thief.Sign(s.ctx, goldenClaimsNow())
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

func goldenClaimsNow() map[string]any { return map[string]any{"aud": "me", "sub": "thief"} }

func (s *theft) rotate() {
	old := s.signed()
	if _, err := s.member().Rotate(s.ctx, keyring.RotateOptions{Compromised: true}); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if s.present, err = s.member().Encrypt(s.ctx, []byte("present"), nil); err != nil {
		s.t.Fatal(err)
	}
	s.want("the thief opens what is sealed now", s.decrypts(s.thief, s.present), false)
	s.want("the thief opens what was sealed before", s.decrypts(s.thief, s.sealed), true)
	for _, token := range []string{old, s.signed()} {
		s.want("a token of the thief's is good", s.member().Keyring().Verify(token, keyring.Expect{Audience: []string{"me"}}) == nil, false)
	}
	s.want("there are join tokens", len(s.member().JoinTokens()) > 0, false)
}

func (s *theft) removeKeys() {
	for _, id := range s.old {
		s.Await(s.ctx, s.member(), "without a key of before", func(keyring.Status) bool { return keyOf(s.member(), id).State == "" })
		if err := s.member().Remove(s.ctx, id, keyring.RemoveOptions{Now: true}); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, n := range s.Nodes.Nodes {
		s.Await(s.ctx, n, "without the keys", func(keyring.Status) bool { return !s.decrypts(n, s.forged) })
	}
}

func (s *theft) forgetPeer() {
	lost := raft.ServerID("s2")
	closeNode(s.t, s.Nodes.Nodes[lost])
	delete(s.Nodes.Nodes, lost)
	if err := s.thief.AddServer(s.ctx, lost, s.Addrs[lost]); err != nil { // the thief would take it in
		s.t.Fatal(err)
	}
	cfg := s.Config(lost)
	cfg.Dir, cfg.Data = s.t.TempDir(), keyring.NoData{}
	cfg.Peers = map[raft.ServerID]string{"s1": s.Addrs["s3"], "s2": s.Addrs["s2"], "s4": s.Addrs["s3"]} // led astray
	wantSilent(s.t, s.ctx, cfg)
	cfg.Peers["s1"], cfg.Peers["s4"] = s.Addrs["s1"], s.Addrs["s4"]
	n, err := node.Start(s.ctx, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Nodes.Nodes[lost] = n
	within(s.t, s.ctx, s.Nodes, n, lost)
	s.stays()
}

func (s *theft) backup() {
	var file bytes.Buffer
	leader := s.Nodes.Nodes[s.member().Leader()]
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := leader.Keyring().Backup(s.ctx, &file, identity.Recipient())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, k := range m.Keys {
		s.want("the backup has a key of the thief's", slices.Contains(s.old, k.ID), false)
	}
}

func (s *theft) replace() {
	cfg := s.Newcomer("s5")
	cfg.JoinToken = keyringtest.JoinToken(s.t, s.member(), "s5", 0)
	n := s.Start(s.ctx, cfg)
	s.want("the new server opens what is sealed now", s.decrypts(n, s.present), true)
	if _, err := n.Keyring().Decrypt(s.sealed, nil); !errors.Is(err, keyring.ErrUnknownKey) {
		s.t.Errorf("the new server knows an old key: %v", err)
	}
}
