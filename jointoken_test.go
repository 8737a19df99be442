package keyring_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// issuer is a server alone that makes join tokens.
func issuer(t *testing.T, dir string) *node.Node {
	t.Helper()
	n, err := node.Start(t.Context(), node.Config{
		Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Data: keyring.NoData{}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// refusesToken requires a token to be refused for a reason.
func refusesToken(t *testing.T, n *node.Node, token, why string) {
	t.Helper()
	if got := keyring.JoinRefusal(n, token, "s4"); !strings.Contains(got, why) || why == "" {
		t.Errorf("%q, want %q", got, why)
	}
}

func rotateNode(t *testing.T, n *node.Node, o keyring.RotateOptions) keyring.Key {
	t.Helper()
	k, err := n.Rotate(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestJoinTokenIsGoodUntilItEnds: what ends one, and what does not.
func TestJoinTokenIsGoodUntilItEnds(t *testing.T) {
	t.Parallel()
	const gone = "there is no such token"
	for name, test := range map[string]struct {
		then func(t *testing.T, n *node.Node)
		why  string // it is refused then; empty if it is not
	}{
		"nothing":  {func(*testing.T, *node.Node) {}, ""},
		"rotation": {func(t *testing.T, n *node.Node) { rotateNode(t, n, keyring.RotateOptions{}) }, ""},
		"full rotation": {func(t *testing.T, n *node.Node) {
			rotateNode(t, n, keyring.RotateOptions{Full: true})
		}, gone},
		"revocation": {func(t *testing.T, n *node.Node) {
			rotateNode(t, n, keyring.RotateOptions{Revoke: []keyring.KeyID{n.Keyring().Keys()[0].ID}})
		}, gone},
		"removal of its key": {func(t *testing.T, n *node.Node) {
			old := n.Keyring().Keys()[0].ID
			rotateNode(t, n, keyring.RotateOptions{})
			if err := n.Remove(t.Context(), old, keyring.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		}, gone},
		"withdrawal": {func(t *testing.T, n *node.Node) {
			if err := n.WithdrawJoinToken(t.Context(), n.JoinTokens()[0].ID); err != nil {
				t.Fatal(err)
			}
		}, gone},
		"a snapshot restored": {func(t *testing.T, n *node.Node) {
			if err := restoreRaft(keyring.Raft(n.Keyring())); err != nil {
				t.Fatal(err)
			}
			awaitTokens(t, n, 0)
		}, gone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := issuer(t, t.TempDir())
			token := keyringtest.JoinToken(t, n, "s4", 0)
			if got := keyring.JoinRefusal(n, token, "s4"); got != "" {
				t.Fatalf("a new token is refused: %s", got)
			}
			test.then(t, n)
			if got := keyring.JoinRefusal(n, token, "s4"); !strings.Contains(got, test.why) || (got == "") != (test.why == "") {
				t.Errorf("%q, want %q", got, test.why)
			}
		})
	}
}

// awaitTokens waits until a node knows so many join tokens.
func awaitTokens(t *testing.T, n *node.Node, want int) {
	t.Helper()
	for {
		changed := n.Keyring().Changed()
		if len(n.JoinTokens()) == want {
			return
		}
		<-changed
	}
}

// TestRestoredTokenIsRefusedBeforeItEnds: a snapshot from before its end brings it back into the ring, and the
// leader takes nobody in with it, however soon somebody comes.
func TestRestoredTokenIsRefusedBeforeItEnds(t *testing.T) {
	t.Parallel()
	n := issuer(t, t.TempDir())
	token := keyringtest.JoinToken(t, n, "s4", 0)
	restored := make(chan string, 1)
	err := keyring.BetweenSteps(t.Context(), n.Keyring(), func(context.Context) error { // so nothing ends it meanwhile
		err := restoreRaft(keyring.Raft(n.Keyring()))
		restored <- keyring.JoinRefusal(n, token, "s4")
		return err
	})
	if got := <-restored; err != nil || !strings.Contains(got, "only from a snapshot") {
		t.Errorf("%q, %v", got, err)
	}
	awaitTokens(t, n, 0)
	refusesToken(t, n, token, "there is no such token")
}

// TestTokenOfASnapshotEndsWithAStart: after a restart, as after Restore and Recover, nobody can tell
// whether it ended meanwhile. One that the log has lives on.
func TestTokenOfASnapshotEndsWithAStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := issuer(t, dir)
	old := keyringtest.JoinToken(t, n, "s4", 0)
	if err := keyring.Raft(n.Keyring()).Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	logged := keyringtest.JoinToken(t, n, "s4", 0)
	keyringtest.CloseNode(t, n)
	n = issuer(t, dir)
	awaitTokens(t, n, 1)
	refusesToken(t, n, old, "there is no such token")
	if got := keyring.JoinRefusal(n, logged, "s4"); got != "" {
		t.Errorf("a token of the log is refused: %s", got)
	}
	keyringtest.CloseNode(t, n)
	cfg := node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}}
	if _, err := node.Recover(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	n = issuer(t, dir)
	awaitTokens(t, n, 0)
	refusesToken(t, n, logged, "there is no such token")
}

// TestJoinTokenEndsWithItsTime, and a clock that is set back does not bring it to life.
func TestJoinTokenEndsWithItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		add := tokenCommand(leader, time.Now().Add(time.Hour))
		if err := keyring.Propose(t.Context(), leader.Keyring, add); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(59 * time.Minute) // virtual
		for _, s := range c.Servers {
			if n := len(keyring.Ring(s.FSM).JoinTokens); n != 1 {
				t.Errorf("%s has %d tokens before the end", s.ID, n)
			}
		}
		time.Sleep(2 * time.Minute)
		for _, s := range c.Servers {
			if n := len(keyring.Ring(s.FSM).JoinTokens); n != 0 {
				t.Errorf("%s has %d tokens after the end", s.ID, n)
			}
		}
	})
}

func TestJoinTokensAreListedAndBounded(t *testing.T) {
	t.Parallel()
	n := issuer(t, t.TempDir())
	for i := range keyring.MaxJoinTokens {
		keyringtest.JoinToken(t, n, raft.ServerID(fmt.Sprintf("s%d", i)), time.Minute)
	}
	all := n.JoinTokens()
	seen := map[raft.ServerID]bool{}
	for _, info := range all {
		seen[info.Server] = true
		if left := time.Until(info.End); left <= 0 || left > time.Minute || info.Used {
			t.Errorf("%+v", info)
		}
	}
	if len(seen) != keyring.MaxJoinTokens {
		t.Errorf("%d tokens of %d", len(seen), keyring.MaxJoinTokens)
	}
	if _, err := n.JoinToken("more", 0); err == nil || !strings.Contains(err.Error(), "64 already") {
		t.Errorf("one more: %v", err)
	}
	for id, want := range map[string]string{
		all[0].ID: "", strings.Repeat("0", 32): "there is no such token", "abc": "not the ID", all[0].ID + " ": "not the ID",
	} {
		err := n.WithdrawJoinToken(t.Context(), id)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("withdraw %q: %v, want %q", id, err, want)
		}
	}
	if n := len(n.JoinTokens()); n != keyring.MaxJoinTokens-1 {
		t.Errorf("%d tokens are left", n)
	}
	for _, ttl := range []time.Duration{-1, keyring.MaxJoinTTL + 1} {
		if _, err := n.JoinToken("s4", ttl); err == nil {
			t.Errorf("a token is made for %v", ttl)
		}
	}
	if _, err := n.JoinToken("", 0); err == nil {
		t.Error("a token is made for nobody")
	}
}

// TestRaftAloneHasNoJoinToken: log, snapshots and memory of raft do not have the secret of a token, under
// any root key.
func TestRaftAloneHasNoJoinToken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := issuer(t, dir)
	token := keyringtest.JoinToken(t, n, "s4", 0)
	if err := keyring.Raft(n.Keyring()).Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	keyringtest.CloseNode(t, n)
	d := stolen{dir: dir, keys: make([]keyring.KeyID, 1), secrets: make([][]byte, 2)}
	if found := d.search(t, joinSecret(token)); found > 0 {
		t.Errorf("%d times", found)
	}
}

// TestTokenOfAnOlderBuildStopsNoMember: it is looked at only where there is no raft log.
func TestTokenOfAnOlderBuildStopsNoMember(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	b.Nodes.Close()
	clear(b.Nodes.Nodes)
	config := func() node.Config {
		cfg := b.Config("s1")
		b.Configure(&cfg)
		cfg.JoinToken = "AQ"
		return cfg
	}
	n, err := node.Start(ctx, config())
	if err != nil {
		t.Fatal(err)
	}
	keyringtest.CloseNode(t, n)
	if _, err := node.Recover(ctx, config()); err != nil {
		t.Error(err)
	}
	restored := config()
	restored.Dir = filepath.Join(t.TempDir(), "node")
	o := keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Digest: b.Manifest.SHA256}
	if _, err := node.Restore(ctx, bytes.NewReader(b.File), restored, o); err != nil {
		t.Error(err)
	}
	fresh := config()
	fresh.Dir, fresh.Join = t.TempDir(), []string{"s2@127.0.0.1:1"}
	if n, err := node.Start(ctx, fresh); err == nil || !strings.Contains(err.Error(), "JoinToken: ") {
		t.Errorf("a new server: %v", err)
		if err == nil {
			n.Close()
		}
	}
}

// TestTokenWhoseTimeHasPassedIsNotListed, also while the leader has not ended it.
func TestTokenWhoseTimeHasPassedIsNotListed(t *testing.T) {
	end := time.Now()
	ring := &meta.Ring{JoinTokens: []meta.JoinToken{{Server: "s4", End: end}, {Server: "s5", End: end.Add(time.Second)}}}
	if all := keyring.LiveTokens(ring, end); len(all) != 1 || all[0].Server != "s5" {
		t.Errorf("%+v", all)
	}
}

func TestServerJoinsWithAToken(t *testing.T) {
	t.Parallel()
	ctx, c, sealed := keyringtest.ReadyNodes(t, 3)
	cfg := c.Newcomer("s4")
	var n *node.Node
	if err := readmeJoin(ctx, c.Nodes["s3"], cfg.Join, cfg, func(node *node.Node) { n = node }); err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	c.AwaitVote(ctx, n, "s4")
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestTokenIsBoundToOneCertificate: who has copied it, with another certificate of that server, can't use it
// once the server has, though it has not become a member.
func TestTokenIsBoundToOneCertificate(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	token := keyringtest.JoinToken(t, c.Nodes["s2"], "s4", 0)
	if err := useToken(c.Nodes[c.Nodes["s1"].Leader()], token, "s4", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	cfg := c.Newcomer("s4")
	cfg.JoinToken = token
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if n, err := node.Start(short, cfg); err == nil || !strings.Contains(err.Error(), "JoinToken, or AddServer") {
		if err == nil {
			n.Close()
		}
		t.Errorf("it joins with a token that another certificate has used: %v", err)
	}
	if servers := keyring.Raft(c.Nodes["s1"].Keyring()).GetConfiguration().Configuration().Servers; len(servers) != 3 {
		t.Errorf("%v", servers)
	}
}

// restoreRaft makes a snapshot and restores it, which sends it to every other server.
func restoreRaft(r *raft.Raft) error {
	f := r.Snapshot()
	if err := f.Error(); err != nil {
		return err
	}
	meta, content, err := f.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	return r.Restore(meta, content, time.Minute)
}

// useToken binds a server's join token to a certificate, on the leader.
func useToken(leader *node.Node, token string, server raft.ServerID, user meta.Digest) error {
	t, err := join.Parse(token)
	if err != nil {
		return err
	}
	use := &meta.UseJoinToken{ID: t.ID, Server: string(server), User: user}
	return keyringtest.Propose(keyring.Raft(leader.Keyring()), meta.Command{UseJoinToken: use})
}

// joinSecret is what raft must not have of a join token.
func joinSecret(token string) []byte {
	b, _ := base64.RawURLEncoding.DecodeString(token)
	return b[17:]
}

// readmeJoin is a snippet of the pages.
func readmeJoin(ctx context.Context, member *node.Node, addresses []string, cfg node.Config, use func(*node.Node)) error {
	token, err := member.JoinToken("s4", time.Hour) // for that server alone
	if err != nil {
		return err
	}
	cfg.Join, cfg.JoinToken = addresses, token // there: ID "s4", an empty Dir, its own KEKs and certificate
	n, err := node.Start(ctx, cfg)
	if err == nil {
		use(n)
	}
	return err
}
