package docs_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"example.com/keyring/records"
	"filippo.io/age"
)

const threatModel = "docs/threat-model.md"

// verdicts are those of a table of attackers: by attacker, and by what it may want.
type verdicts map[string]map[string]string

// cells are those of a row of a table. There are none in other lines.
func cells(line string) (all []string) {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|--") {
		return nil
	}
	for _, c := range strings.Split(strings.Trim(line, "|"), "|") {
		all = append(all, strings.TrimSpace(c))
	}
	return all
}

// threats are the columns of the first table, its verdicts, and the section that its rows lead to.
func threats(t *testing.T, page string) (wants []string, v verdicts, section map[string]string) {
	t.Helper()
	attacker := regexp.MustCompile(`^\[(\w+)\]\(#([\w-]+)\): .`)
	v, section = verdicts{}, map[string]string{}
	for line := range strings.Lines(page) {
		row := cells(line)
		switch {
		case len(row) < 7:
		case row[0] == "attacker":
			wants = row[1:]
		default:
			m := attacker.FindStringSubmatch(row[0])
			if m == nil || len(row) != len(wants)+1 || v[m[1]] != nil {
				t.Fatalf("%s: %s", threatModel, line)
			}
			v[m[1]], section[m[1]] = map[string]string{}, m[2]
			for i, verdict := range row[1:] {
				if !slices.Contains([]string{"no", "yes", "if"}, verdict) {
					t.Errorf("%s, %s: %q is no verdict", m[1], wants[i], verdict)
				}
				v[m[1]][wants[i]] = verdict
			}
		}
	}
	return wants, v, section
}

// TestEachCellOfTheThreatModelIsHeld: each cell of the first table has a verdict, and one row of another table that says why, with
// the same verdict, in the section that the first table leads to. The row names tests that are where it says, or says that there can be none.
func TestEachCellOfTheThreatModelIsHeld(t *testing.T) {
	page := keyringtest.Pages(t)[threatModel]
	wants, first, sectionOf := threats(t, page)
	if len(wants) != 6 || len(first) < 20 {
		t.Fatalf("%d attackers, who want %q", len(first), wants)
	}
	why := verdicts{}
	for _, section := range strings.Split(page, "\n## ")[1:] {
		anchor := anchors("## " + section)[0]
		for line := range strings.Lines(section) {
			row := cells(line)
			if len(row) != 5 || row[0] == "attacker" {
				continue
			}
			who := row[0]
			if sectionOf[who] != anchor || row[3] == "" {
				t.Errorf("%s: %s", anchor, line)
			}
			if why[who] == nil {
				why[who] = map[string]string{}
			}
			for want := range strings.SplitSeq(row[1], ", ") {
				if first[who][want] == "" || first[who][want] != row[2] || why[who][want] != "" {
					t.Errorf("%s, %s: %q here, %q in the first table, %q before", who, want, row[2], first[who][want], why[who][want])
				}
				why[who][want] = row[2]
			}
			checkTests(t, line, row[4])
		}
	}
	for who, row := range first {
		for want := range row {
			if why[who][want] == "" {
				t.Errorf("%s, %s: nothing says why", who, want)
			}
		}
	}
}

// checkTests wants a list of links, each to a file with the test that it names, or no test by nature.
func checkTests(t *testing.T, line, list string) {
	t.Helper()
	if list == "by nature" {
		return
	}
	tests, named := keyringtest.TestFiles(t), regexp.MustCompile(`^\[(Test\w+)\]\((\S+)\)$`)
	for one := range strings.SplitSeq(list, ", ") {
		m := named.FindStringSubmatch(one)
		if m == nil || !strings.Contains(tests[path.Join("docs", m[2])], "\nfunc "+m[1]+"(") {
			t.Errorf("there is no test %s: %s", one, line)
		}
	}
}

// TestNonMemberLearnsWhoLeadsAlone: a certificate of the CA gets an answer to hello, of which each member is named here, and to nothing else.
func TestNonMemberLearnsWhoLeadsAlone(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	client := peer.NewClient(&peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/s9", nil)})
	defer client.Close()
	refused := func(id string, path string, codes ...peer.Code) {
		_, err := client.Call(ctx, id, c.Addrs["s1"], path, []byte(`{"addr":"127.0.0.1:9"}`))
		if r := (*peer.Refusal)(nil); !errors.As(err, &r) || !slices.Contains(codes, r.Code) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{
		"/keyring", "/node/encrypt", "/node/decrypt", "/node/sign", "/node/sign-typed", "/node/rotate", "/node/remove", "/node/adopt", "/node/status",
		"/node/add-server", "/node/remove-server", "/node/join-token", "/node/withdraw-join-token", "/node/confirm-backup", "/node/none",
	} {
		refused("s1", path, peer.NotMember)
	}
	refused("s1", "/node/join", peer.NotMember, peer.NotLeader)
	answer, err := client.Call(ctx, "s1", c.Addrs["s1"], "/node/hello", nil)
	if err != nil {
		t.Fatal(err)
	}
	var says map[string]any
	if err := json.Unmarshal(answer, &says); err != nil {
		t.Fatal(err)
	}
	for name := range says {
		if !slices.Contains([]string{"founded", "leader", "leaderID", "addr", "commit"}, name) {
			t.Errorf("hello says %q: %s", name, answer)
		}
	}
	if says["founded"] != true || says["leaderID"] != string(c.Nodes["s1"].Leader()) {
		t.Errorf("hello says %s", answer)
	}
}

// TestOutsiderSeesTheCertificateOfTheServerAlone: without a certificate of its own it is shown that one, and an alert.
func TestOutsiderSeesTheCertificateOfTheServerAlone(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 1)
	outsider := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{peer.ALPNPeer}}}
	conn, err := outsider.DialContext(ctx, "tcp", c.Addrs["s1"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	shown := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if len(shown) == 0 || len(shown[0].URIs) != 1 || shown[0].URIs[0].String() != "keyring://test/server/s1" {
		t.Errorf("it is shown %v", shown)
	}
	io.WriteString(conn, "POST /node/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") // as the connection may have been closed by then
	alert := (*net.OpError)(nil)
	if b, err := io.ReadAll(conn); len(b) > 0 || !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("it is told %q, %v", b, err)
	}
}

// TestRaftHasNamesOfAMapAndNoPlaintext: all files of a server are searched for what is in the parts of a record, and for what is not.
func TestRaftHasNamesOfAMapAndNoPlaintext(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	keys, dir := keyring.NewFSM(), t.TempDir()
	m := records.New(keys)
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, App: m, Keys: keys, Data: m})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	m.Connect(n.Keyring(), n.Apply)
	plaintext, name, meta := []byte("the plaintext of a part, which is secret"), []byte("the name of a record, in the clear"), []byte("the meta of a record, in the clear")
	if _, err := m.Put(ctx, records.Write{Name: string(name), Meta: meta, Parts: [][]byte{plaintext}}); err != nil {
		t.Fatal(err)
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Keyring().WriteBackup(ctx, io.Discard, identity.Recipient()); err != nil { // has raft make a snapshot
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if keyringtest.Leaks(b, [][]byte{plaintext}) > 0 {
			t.Errorf("the plaintext is in %s", path)
		}
		if keyringtest.Leaks(b, [][]byte{name, meta}) == 2 {
			found[d.Name()]++
		}
		return err
	})
	if err != nil || found["raft.db"] != 1 || found["state.bin"] != 1 {
		t.Errorf("the name is in %v, %v", found, err)
	}
}

// TestArchiveShowsNothing of what it has inside.
func TestArchiveShowsNothing(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	opened, err := age.Decrypt(bytes.NewReader(file), identity)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := io.ReadAll(opened)
	if err != nil {
		t.Fatal(err)
	}
	const enough = 24 // bytes in a row that are there by chance in no file
	searched := 0
	for part := range slices.Chunk(inside, enough) {
		if len(part) == enough && bytes.Count(part, part[:1]) < enough/2 { // no padding
			if searched++; bytes.Contains(file, part) {
				t.Errorf("%q is in the archive", part)
			}
		}
	}
	if searched < 100 || !bytes.Contains(inside, []byte(m.Keys[0].ID.String())) {
		t.Errorf("only %d parts were searched for, of %d bytes", searched, len(inside))
	}
}

// TestFiguresOfTheThreatModel: the bound of messages is that of the package which encrypts.
func TestFiguresOfTheThreatModel(t *testing.T) {
	seal, err := os.ReadFile("../internal/seal/seal.go")
	if err != nil {
		t.Fatal(err)
	}
	const messages, blocks, every = 36, 52, 30 * 24 * time.Hour
	if want := fmt.Sprintf("2^%d messages or 2^%d blocks under one root key", messages, blocks); !strings.Contains(string(seal), want) {
		t.Errorf("internal/seal does not say %q", want)
	}
	const perSecond = int64(1<<messages) / int64(every/time.Second)
	checkFigures(t, []figure{
		{threatModel, fmt.Sprintf("2^%d messages and %d PiB", messages, 1<<(blocks+4-50))},
		{threatModel, fmt.Sprintf("With a rotation every %d days that is %d,000 messages a second", every/(24*time.Hour), perSecond/1000)},
	})
}
