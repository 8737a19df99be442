package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/examples/watchmap/store"
	keyringgrpc "example.com/keyring/grpc"
	"filippo.io/age"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// written is what a test has written.
type written map[string]string

// put writes n values.
func (v written) put(leader *server, prefix string, n int) (last uint64) {
	leader.c.T.Helper()
	for i := range n {
		key := fmt.Sprintf("%s/%03d", prefix, i)
		v[key] = "plaintext of " + key
		leader.do("Put", store.Command{Key: key, Value: []byte(v[key])}, &last)
	}
	return last
}

// check wants a server to have all of them, and no others, as soon as it has what was written at a version.
func (v written) check(s *server, version uint64) {
	s.c.T.Helper()
	s.do("Ready", store.Command{}, new(any)) // it has caught up
	s.awaitVersion(version)
	var list []store.Entry
	s.do("List", store.Command{}, &list)
	if len(list) != len(v) {
		s.c.T.Errorf("%s has %d values, want %d", s.ID, len(list), len(v))
	}
	for key, want := range v {
		var e store.Entry
		if s.do("Get", store.Command{Key: key}, &e); string(e.Value) != want {
			s.c.T.Errorf("%s: %s is %q, want %q", s.ID, key, e.Value, want)
		}
	}
}

// watchAll makes the watch of all values.
func watchAll(leader *server) {
	leader.do("SetWatch", store.Command{Op: "watch", Key: "all"}, new(any))
}

// TestUsersWatchWhileKeysRotate: on three servers, a user is told of each write and of no rotation, of whichever kind; and the writes go
// on when the leader is killed.
func TestUsersWatchWhileKeysRotate(t *testing.T) {
	t.Parallel()
	c, v := newCluster(t), written{}
	all := []*server{c.add("s1"), c.add("s2"), c.add("s3")}
	for _, s := range all {
		s.start("now", initial(all...))
	}
	leader := all[0].ready(all...)
	watchAll(leader)
	told := make([]<-chan []store.Entry, len(all))
	for i, s := range all {
		told[i] = s.follow("all", 0)
	}
	last := v.put(leader, "a", 1)
	expect := func(i int, key string) {
		t.Helper()
		if news := <-told[i]; len(news) != 1 || news[0].Key != key || news[0].Version != last {
			t.Errorf("%s is told of %+v, want %s at %d", all[i].ID, news, key, last)
		}
	}
	for i := range all {
		expect(i, "a/000")
	}
	first := leader.awaitStep("activated", "")
	if _, err := leader.operators.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	leader.awaitStep("retired", first)
	if n := leader.under(first); n != 1 {
		t.Errorf("%d values are under the first key, want 1: no full rotation moves them", n)
	}
	c.run(leader, "keys", "rotate", "-full")
	leader.awaitStep("deprecated", first)
	if n := leader.under(first); n != 0 {
		t.Errorf("%d values are under the first key", n)
	}
	leader.Kill()
	for i, s := range all {
		if s == leader {
			continue
		}
		next := s.leader(leader.ID)
		next.do("Ready", store.Command{}, new(any))
		last = v.put(next, "b", 1)
		expect(i, "b/000")
		v.check(s, last)
		break
	}
}

// TestUsersAreNoServers: who has no certificate of the CA gets no connection, and the keyring answers no user, even one with the
// certificate of a server.
func TestUsersAreNoServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := c.add("s1")
	s.start("now", initial(s))
	s.ready(s)
	err := s.users.Invoke(t.Context(), "/"+keyringgrpc.ServiceName+"/Call", wrapperspb.Bytes(nil), new(wrapperspb.BytesValue), grpc.CallContentSubtype("proto"))
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the keyring answers a user: %v", err)
	}
	conf, err := config{dir: s.Dir}.usersTLS()
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = nil
	cc, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithDefaultCallOptions(grpc.CallContentSubtype("json")))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	anybody := client{cc}
	err = anybody.call(t.Context(), "Leader", store.Command{}, new(string))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a user without a certificate: %v", err)
	}
}

// TestClusterOfBeforeTheKeyringIsUpgraded server by server, and has all of its values, which are encrypted then. Raft's addresses stay,
// and users come to them.
func TestClusterOfBeforeTheKeyringIsUpgraded(t *testing.T) {
	t.Parallel()
	c, v := newCluster(t), written{}
	all := []*server{c.add("s1"), c.add("s2"), c.add("s3")}
	for _, s := range all {
		s.start("before", initial(all...))
	}
	leader := all[0].leader("")
	watchAll(leader)
	last := v.put(leader, "snapshot", 20)
	for _, s := range all {
		s.awaitVersion(last)
		s.snapshot()
	}
	v.put(leader, "log", 20)
	var old store.Entry
	leader.do("Get", store.Command{Key: "snapshot/007"}, &old)
	for _, s := range all {
		s.Stop()
		s.start("now")
	}
	leader = all[0].ready(all...)
	leader.Await("the values are encrypted", func(line string) bool {
		return strings.Contains(line, "no record is in the clear any longer")
	})
	last = v.put(leader, "new", 5)
	for _, s := range all {
		v.check(s, last)
		var e store.Entry
		if s.do("Get", store.Command{Key: "snapshot/007"}, &e); e.Version != old.Version {
			t.Errorf("%s: the version is %d, and was %d", s.ID, e.Version, old.Version)
		}
		if b := s.snapshot(); strings.Contains(b, "plaintext") || !strings.Contains(b, `"prefix"`) {
			t.Errorf("%s has plaintexts, or no watch, in its snapshot", s.ID)
		}
	}
}

// TestClusterGrowsRotatesLosesItsLeaderShrinksAndIsRestored: from one server to three and five, and all servers open all values all
// along.
func TestClusterGrowsRotatesLosesItsLeaderShrinksAndIsRestored(t *testing.T) {
	t.Parallel()
	c, v := newCluster(t), written{}
	s1 := c.add("s1")
	s1.start("now", initial(s1), "-rate=100")
	s1.ready(s1)
	watchAll(s1)
	last := v.put(s1, "a", 200)
	c.grow(s1, "s2", "s3")
	v.check(c.servers["s3"], last)
	c.grow(s1, "s4", "s5")
	all := []*server{s1, c.servers["s2"], c.servers["s3"], c.servers["s4"], c.servers["s5"]}
	for _, s := range all {
		v.check(s, last)
	}

	first := s1.awaitStep("activated", "")
	if _, err := s1.operators.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	s1.awaitStep("rekeying", first)
	s1.Kill()
	rest := all[1:]
	if left := rest[0].under(first); left == 0 {
		t.Error("all values had been encrypted again: that is not the middle")
	}
	leader := rest[0].leader("s1")
	rest[0].ready(rest...)
	leader.awaitStep("deprecated", first)
	last = v.put(leader, "b", 5)
	s1.start("now")
	for _, s := range all {
		v.check(s, last)
		if n := s.under(first); n != 0 {
			t.Errorf("%s has %d values under the first key", s.ID, n)
		}
	}
	c.shrinkAndRestore(leader, v)
}

// grow starts servers, adds them, and waits until they vote.
func (c *cluster) grow(leader *server, ids ...string) {
	c.T.Helper()
	for _, id := range ids {
		s := c.add(id)
		s.start("now", "-rate=100")
		c.run(leader, "servers", "add", "-addr", s.Addr, id)
		s.do("Ready", store.Command{}, new(any))
		leader.Await("the vote of "+id, func(line string) bool {
			return strings.Contains(line, "promoting a server") && strings.Contains(line, "id="+id)
		})
	}
}

// shrinkAndRestore leaves one server, backs it up, and restores that in the place of the cluster.
func (c *cluster) shrinkAndRestore(leader *server, v written) {
	c.T.Helper()
	for _, id := range []string{"s1", "s2", "s3", "s4", "s5"} {
		if id == leader.ID {
			continue
		}
		if err := leader.operators.RemoveServer(c.T.Context(), raft.ServerID(id), keyring.RemoveServerOptions{}); err != nil {
			c.T.Fatal(err)
		}
		c.servers[id].Kill()
	}
	last := v.put(leader, "c", 5)
	v.check(leader, last)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		c.T.Fatal(err)
	}
	key, backup := filepath.Join(c.Dir, "key.txt"), filepath.Join(c.Dir, "backup.age")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		c.T.Fatal(err)
	}
	c.run(leader, "backup", "-to", identity.Recipient().String(), backup)
	leader.Kill()
	again := c.add("s6")
	c.run(again, "restore", "-identity", key, "-unauthenticated", backup)
	again.start("now")
	again.ready(again)
	v.check(again, last)
	last = v.put(again, "d", 5)
	v.check(again, last)
}
