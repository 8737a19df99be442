package admin

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"example.com/keyring"
)

// CommandOptions says how Command works. The zero value is for a host whose Handlers let anybody in who reaches them.
type CommandOptions struct {
	// Program names the host's program, and the server that is asked without -server. It is that of Config.
	Program Program
	// HTTP sends the requests: see NewClient. Nil means http.DefaultClient.
	HTTP *http.Client
	// Restore, if it is set, is the command restore: it makes the directory of a server from a backup, by node.Restore or
	// keyring.Restore. args are the arguments before the backup, as many as RestoreArgs has words.
	Restore     func(ctx context.Context, args []string, backup io.Reader, o keyring.RestoreOptions) (keyring.Manifest, error)
	RestoreArgs string
	// Usage are lines about commands of the host's own, which are printed before those of this package where all are listed.
	Usage string
	// Stdout and Stderr are written to. Nil means those of the process.
	Stdout, Stderr io.Writer
}

// usageLines are the commands: how each is called, and what it does.
const usageLines = `[-server URL] keys status [-json]       keys, servers, problems
[-server URL] keys rotate [-publish 5m] [-full] [-compromised]       without -publish the key signs at once: for emergencies
[-server URL] keys remove [-force] [-now] ID
[-server URL] keys adopt ID       take in the key of a file that the keyring does not know
[-server URL] keys rewrap       wrap that server's key files under its present KEKs alone
[-server URL] servers add [-addr HOST:PORT] [-nonvoter] ID       a new one may join, or one has moved
[-server URL] servers remove [-force] ID       refused while a key would be held by too few
[-server URL] servers promote ID       give it a vote, once it holds every key
[-server URL] servers demote ID       take its vote: it stays, with its keys
[-server URL] servers lead [ID]       the leader hands over, to that server or to any
[-server URL] servers token [-ttl 1h] ID       print a token with which that server may join
[-server URL] servers tokens       those that have not ended
[-server URL] servers withdraw TOKEN-ID
[-server URL] backup -to RECIPIENT,... FILE        everything, for age recipients; prints its SHA-256
verify -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] BACKUP       says whether it restores
restore -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] [-unauthenticated] [-data-only] [-force] RESTOREARGS BACKUP       makes the directory of a server
inspect [-kek FILE,...] KEYSTORE-DIR       what lies there; a star marks the KEKs that open a key
`

// Command runs a command of an operator's: keys, servers, backup, verify, restore or inspect, with their arguments, and perhaps
// -server URL before them. It is for the CLI of a host, which passes the rest of its own arguments on. -h lists the
// commands. The package's documentation has more.
//
// Print its error, with the program's name before it, and exit with ExitStatus. Nothing that a server or a file says reaches a terminal with
// control characters.
func Command(ctx context.Context, args []string, o CommandOptions) error {
	c := newCLI(o)
	fs := flag.NewFlagSet(c.program.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	server := fs.String("server", c.program.Server, "")
	if err := fs.Parse(args); err != nil {
		return c.help("", usage{err})
	}
	name, rest := fs.Arg(0), fs.Args()[min(1, fs.NArg()):]
	if (name == "keys" || name == "servers") && len(rest) > 0 {
		name, rest = name+" "+rest[0], rest[1:]
	}
	switch name {
	case "keys -h", "keys -help", "keys --help", "servers -h", "servers -help", "servers --help":
		return c.help("", flag.ErrHelp)
	}
	run, known := c.commands()[name]
	if !known {
		return c.help("", usage{fmt.Errorf("there is no command %q", name)})
	}
	if asksServer(name) && !wantsHelp(rest) {
		if *server == "" {
			return c.help(name, usage{errors.New("-server is missing")})
		}
		var err error
		if c.client, err = NewClient(*server, o.HTTP); err != nil {
			return c.help(name, usage{fmt.Errorf("-server: %w", err)})
		}
	}
	return c.help(name, run(ctx, rest))
}

// asksServer reports whether a command does. The others read files.
func asksServer(name string) bool {
	return strings.HasPrefix(name, "keys ") || strings.HasPrefix(name, "servers ") || name == "backup"
}

func wantsHelp(args []string) bool {
	return len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help")
}

// ExitStatus is the exit status for an error of Command: 0 for none, 1 if something failed, as a disk, or a server that does not answer or refuses, 2 for
// wrong usage, and 3 if what was looked at is not good: verify says that the backup does not restore with these identities, inspect that
// something is wrong with a file, that no KEK given opens it or that there is no key, keys status that there is a problem which is more
// than a notice.
func ExitStatus(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usage)):
		return 2
	case errors.As(err, new(finding)):
		return 3
	}
	return 1
}

// usage is an error of the one who has called the program.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// finding says that all went well but for what was looked at, which is not good.
type finding struct{ error }

func (f finding) Unwrap() error { return f.error }

// cli is what the commands work with.
type cli struct {
	client   *Client // nil where no server is asked
	program  Program
	options  CommandOptions
	out      io.Writer
	warn     io.Writer
	terminal io.Writer // what shows progress, or io.Discard
}

func newCLI(o CommandOptions) *cli {
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	return &cli{program: o.Program.withDefaults(), options: o, out: printable{o.Stdout}, warn: printable{o.Stderr}, terminal: watched(o.Stderr)}
}

func (c *cli) commands() map[string]func(context.Context, []string) error {
	all := map[string]func(context.Context, []string) error{
		"keys status":      c.status,
		"keys rotate":      c.rotate,
		"keys remove":      c.remove,
		"keys adopt":       c.adopt,
		"keys rewrap":      c.rewrap,
		"servers add":      c.addServer,
		"servers remove":   c.removeServer,
		"servers promote":  c.promoteServer,
		"servers demote":   c.demoteServer,
		"servers lead":     c.transfer,
		"servers token":    c.joinToken,
		"servers tokens":   c.joinTokens,
		"servers withdraw": c.withdrawToken,
		"backup":           c.backup,
		"verify":           c.verify,
		"inspect":          c.inspect,
	}
	if c.options.Restore != nil {
		all["restore"] = c.restore
	}
	return all
}

// usageOf returns the lines that say how a command is called, or how all are if it is none.
func (c *cli) usageOf(command string) string {
	var all, own strings.Builder
	all.WriteString(c.options.Usage)
	for line := range strings.Lines(usageLines) {
		if strings.HasPrefix(line, "restore ") && c.options.Restore == nil {
			continue
		}
		words := strings.Replace(line, "RESTOREARGS ", strings.TrimLeft(c.options.RestoreArgs+" ", " "), 1)
		all.WriteString(c.program.Name + " " + words)
		if strings.HasPrefix(strings.TrimPrefix(line, "[-server URL] "), command+" ") {
			own.WriteString(c.program.Name + " " + words)
		}
	}
	return cmp.Or(own.String(), all.String())
}

// help tells somebody who has called a command in a wrong way how it is called. It is no error to ask for that.
func (c *cli) help(command string, err error) error {
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, err = io.WriteString(c.out, c.usageOf(command))
	case errors.As(err, new(usage)):
		err = usage{fmt.Errorf("%w\n%s", err, strings.TrimSuffix(c.usageOf(command), "\n"))}
	}
	return err
}

// flags parses those of a command, and wants so many arguments beside them.
func flags(fs *flag.FlagSet, args []string, n int) ([]string, error) {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		return nil, usage{fmt.Errorf("%s: %w", fs.Name(), err)}
	}
	if fs.NArg() != n {
		return nil, usage{fmt.Errorf("%s takes %s after its flags, not %d", fs.Name(), arguments(n), fs.NArg())}
	}
	return fs.Args(), nil
}

func arguments(n int) string {
	switch n {
	case 0:
		return "no arguments"
	case 1:
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", n)
}

const (
	statusTime = 5 * time.Second  // for keys status: the server that is asked gives the others peerTime
	waitTime   = 90 * time.Second // for what waits for a leader, which takes 30 seconds at most
)

// within is for what is answered at once: a server that takes connections and hangs would keep its caller for ever.
func (c *cli) within(ctx context.Context, limit time.Duration, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := call(ctx)
	if hangs(err) {
		err = fmt.Errorf("%s takes connections and has not answered within %v: its process or its disk may hang. Ask another server, with -server: what it says of this one tells what to do: %w", c.client.url, limit, err)
	}
	return err
}
