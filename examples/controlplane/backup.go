package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// backupRequest asks for a backup that these can open.
type backupRequest struct {
	To []string `json:"to"` // age recipients: age1...
}

// What follows the body of a backup: the digest if it is whole, and else an error.
const (
	trailerError  = "Backup-Error"
	trailerDigest = "Backup-Sha256"
	trailerSigner = "Backup-Signer"
)

// backup streams a backup, on the leader. For the cluster there is none before its client has confirmed that it is safe.
func (s *server) backup(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	to, err := s.recipients(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", strings.Join([]string{trailerError, trailerDigest, trailerSigner}, ", "))
	begun := &begunWriter{ResponseWriter: w}
	m, err := s.node.Keyring().WriteBackup(r.Context(), begun, to...)
	if !begun.begun {
		w.Header().Del("Trailer")
		s.refuse(w, r, err)
		return
	}
	if err != nil {
		w.Header().Set(trailerError, err.Error())
		return
	}
	w.Header().Set(trailerDigest, hex.EncodeToString(m.SHA256[:]))
	w.Header().Set(trailerSigner, m.Signer.String())
}

// confirmBackup notes a backup of that digest, which its client has made safe. It may be done twice.
func (s *server) confirmBackup(r *http.Request) (any, error) {
	sum, err := parseSum(r.PathValue("sha256"))
	if err != nil {
		return nil, badRequest{err}
	}
	err = s.node.Keyring().ConfirmBackup(keyring.WithActor(r.Context(), actor(r)), sum)
	if errors.Is(err, keyring.ErrUnknownBackup) {
		err = missing{err}
	}
	return map[string]string{"confirmed": hex.EncodeToString(sum[:])}, err
}

func parseSum(text string) (sum [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(sum) {
		return sum, errors.New("want 64 hexadecimal digits")
	}
	return [32]byte(b), nil
}

func (s *server) recipients(r *http.Request) ([]age.Recipient, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if err := s.person(r); err != nil {
		return nil, err
	}
	if err := parameters(r, nil); err != nil {
		return nil, err
	}
	var in backupRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	to, err := age.ParseRecipients(strings.NewReader(strings.Join(in.To, "\n")))
	if err != nil {
		return nil, badRequest{err}
	}
	return to, nil
}

// begunWriter knows whether anything was written.
type begunWriter struct {
	http.ResponseWriter
	begun bool
}

func (b *begunWriter) Write(p []byte) (int, error) {
	b.begun = true
	return b.ResponseWriter.Write(p)
}

// backup writes a file that verify finds good, or none, and confirms it when it is safe. It never overwrites one.
func (c cli) backup(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("backup", flag.ContinueOnError)
	to := fs.String("to", "", "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	if *to == "" {
		return usage{errors.New("backup: -to is missing")}
	}
	target := args[0]
	// Before the work, and again by place after it.
	if _, err := os.Lstat(target); err == nil {
		return fmt.Errorf("%s exists already", target)
	}
	// A name that nobody else has, for what a crash leaves must not be in the way of the next backup.
	part, err := os.CreateTemp(filepath.Dir(target), filepath.Base(target)+".*.part")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name()) // which is gone if all went well
	c.warnOfParts(filepath.Dir(target), part.Name())
	made, err := c.fetchBackup(ctx, part, strings.Split(*to, ","))
	if err == nil {
		err = part.Sync()
	}
	if err := errors.Join(err, part.Close()); err != nil {
		return err
	}
	if err := place(part.Name(), target); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(target)); err != nil { // or a crash may take the name away again
		return err
	}
	fmt.Fprintf(c.out, "%s  %s\n", made.sum, line(target))
	if err := c.confirm(ctx, made.sum); err != nil {
		fmt.Fprintln(c.warn, "controlplane: the backup is good, but the cluster does not know of it, and the status may go on to ask for one. Make another:", flat(err.Error()))
	}
	fmt.Fprintln(c.warn, "controlplane: keep the SHA-256 or the signer where those who write the file can't write; signed by", line(made.signer))
	return nil
}

// confirmTime is for the answer to a confirmation: the backup is safe without it.
const confirmTime = 30 * time.Second

// confirm tells the cluster that a backup is safe.
func (c cli) confirm(ctx context.Context, sum string) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTime)
	defer cancel()
	return c.call(ctx, http.MethodPost, "/v1/backup/"+sum, nil, &struct{}{})
}

// parts are the names of backups that are being made, or that were cut off.
var parts = regexp.MustCompile(`\.[0-9]+\.part$`)

// warnOfParts names what a backup in that directory has left that was cut off, by a crash say. It may be one that is being made
// now, so it is left there.
func (c cli) warnOfParts(dir, own string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the backup says what is wrong with the directory
	}
	for _, e := range entries {
		if name := filepath.Join(dir, e.Name()); name != own && e.Type().IsRegular() && parts.MatchString(name) {
			fmt.Fprintf(c.warn, "controlplane: %s is of a backup that was cut off, and is no backup: delete it, unless one is being made there now\n", line(name))
		}
	}
}

// fetched is a backup that a server has sent.
type fetched struct{ sum, signer string }

// fetchBackup writes a backup to w. Without an error it is whole.
func (c cli) fetchBackup(ctx context.Context, w io.Writer, to []string) (made fetched, err error) {
	in, err := json.Marshal(backupRequest{To: to})
	if err != nil {
		return made, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/v1/backup", bytes.NewReader(in))
	if err != nil {
		return made, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return made, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return made, answerError(resp)
	}
	digest, p := sha256.New(), &progress{terminal: c.terminal, command: "backup"}
	defer p.end()
	if _, err := io.Copy(io.MultiWriter(w, digest, p), resp.Body); err != nil {
		return made, err
	}
	made = fetched{hex.EncodeToString(digest.Sum(nil)), resp.Trailer.Get(trailerSigner)}
	if resp.Trailer.Get(trailerDigest) != made.sum {
		return made, fmt.Errorf("the backup is not complete: %s", cmp.Or(resp.Trailer.Get(trailerError), "it is cut short"))
	}
	return made, nil
}

// place renames a file to a name that nobody has: it takes the name first, which fails if anybody has come before, and
// then renames over the empty file there, which is its own. A crash in between leaves that. A link would do both at
// once, but the file systems of many removable disks have none.
func place(from, to string) error {
	err := writeNew(to, nil)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already", to)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// backupFile is what verify and restore read, and what they require of it.
type backupFile struct {
	path string
	want keyring.VerifyOptions
}

// backupFlags parses the arguments of verify and restore, of which the last is the backup.
func backupFlags(fs *flag.FlagSet, args []string, n int) ([]string, backupFile, error) {
	identity := fs.String("identity", "", "")
	var b backupFile
	fs.Func("sha256", "", func(text string) (err error) {
		b.want.Digest, err = parseSum(text)
		return err
	})
	fs.TextVar(&b.want.Signer, "signer", keyring.BackupSigner{}, "")
	fs.StringVar(&b.want.Cluster, "cluster", "", "")
	args, err := flags(fs, args, n)
	if err != nil {
		return nil, backupFile{}, err
	}
	if *identity == "" {
		return nil, backupFile{}, usage{fmt.Errorf("%s: -identity is missing", fs.Name())}
	}
	b.path = args[n-1]
	b.want.Identities, err = readIdentities(*identity)
	return args, b, err
}

// tell prints what is in a backup.
func tell(out io.Writer, m keyring.Manifest) {
	fmt.Fprintf(out, "%x: %d keys and all secrets as of log index %d, %s\n", m.SHA256, len(m.Keys), m.Raft.Index, m.Created.UTC().Format("2006-01-02 15:04:05 MST"))
	signer := "nobody: it is of an older build"
	if m.Signer != (keyring.BackupSigner{}) {
		signer = m.Signer.String()
	}
	fmt.Fprintf(out, "cluster %s, signed by %s\n", line(m.Cluster), signer)
}

// read has f read a backup, shows how far it is, and prints what is in it.
func (c cli) read(command string, b backupFile, f func(io.Reader) (keyring.Manifest, error)) error {
	file, size, err := openFile(b.path)
	if err != nil {
		return err
	}
	defer file.Close()
	p := &progress{terminal: c.terminal, command: command, size: size}
	m, err := f(io.TeeReader(file, p))
	p.end()
	if err != nil {
		return err
	}
	tell(c.out, m)
	return nil
}

// verify reads a whole backup.
func (c cli) verify(ctx context.Context, args []string) error {
	_, b, err := backupFlags(flag.NewFlagSet("verify", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	return c.read("verify", b, func(r io.Reader) (keyring.Manifest, error) {
		m, err := keyring.VerifyBackupContext(ctx, r, b.want)
		if err != nil && !errors.As(err, new(*fs.PathError)) { // which says nothing of the backup: it was not read
			err = finding{err}
		}
		return m, err
	})
}

// restore makes the directory of one server from a backup, with the KEK and certificate that init
// has made. The others start with none and join it.
func (c cli) restore(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("restore", flag.ContinueOnError)
	var o keyring.RestoreOptions
	fs.BoolVar(&o.Unauthenticated, "unauthenticated", false, "")
	fs.BoolVar(&o.DataOnly, "data-only", false, "")
	fs.BoolVar(&o.Force, "force", false, "")
	args, b, err := backupFlags(fs, args, 3)
	if err != nil {
		return err
	}
	o.Identities, o.Digest, o.Signer, o.Cluster = b.want.Identities, b.want.Digest, b.want.Signer, b.want.Cluster
	if o.Digest == ([32]byte{}) && o.Signer == (keyring.BackupSigner{}) && !o.Unauthenticated {
		return usage{errors.New("restore: nothing tells who wrote the backup: -sha256, -signer or -unauthenticated is missing")}
	}
	_, conf, err := newServer(args[0], raft.ServerID(args[1]), options{})
	if err != nil {
		return err
	}
	return c.read("restore", b, func(r io.Reader) (keyring.Manifest, error) {
		return node.Restore(ctx, r, conf, o)
	})
}

// recover makes a server that is stopped the only member of the cluster, with what it has, when a
// majority of the servers is gone for good. The others are added, start with empty directories, and join it.
func (c cli) recover(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("recover", flag.ContinueOnError)
	force := fs.Bool("force", false, "")
	args, err := flags(fs, args, 2)
	if err != nil {
		return err
	}
	s, conf, err := newServer(args[0], raft.ServerID(args[1]), options{})
	if err != nil {
		return err
	}
	r, err := node.Recover(ctx, conf, node.RecoverOptions{Force: *force})
	if err != nil {
		return err
	}
	from := ""
	if !r.Time.IsZero() {
		from = r.Time.UTC().Format(" of 2006-01-02 15:04:05 MST")
	}
	fmt.Fprintf(c.out, "%s is the only member; what came after log index %d%s is lost, and %d keys are missing\n", s.id, r.Index, from, len(r.Missing))
	for _, m := range r.Missing {
		fmt.Fprintf(c.out, "missing: %s", m.ID)
		if m.Err != nil {
			fmt.Fprint(c.out, ": ", flat(m.Err.Error()))
		}
		fmt.Fprintln(c.out)
	}
	var others, dirs []string
	for _, id := range s.others() {
		others = append(others, string(id))
		dirs = append(dirs, filepath.Join(args[0], string(id)))
	}
	if len(others) > 0 {
		fmt.Fprintf(c.out, "start %s; before you start %s again, empty %s, for with what they have they would be a second cluster, and add them: servers add\n",
			s.id, strings.Join(others, " and "), strings.Join(dirs, " and "))
	}
	return nil
}

// others are the servers but for this one, sorted.
func (s *server) others() []raft.ServerID {
	all := slices.Sorted(maps.Keys(s.cluster.Servers))
	return slices.DeleteFunc(all, func(id raft.ServerID) bool { return id == s.id })
}
