// Consumes the scenario's topic on four subscriptions at once and writes down everything it sees.
//
// Why Go: of the official clients at hand, the Python one has no switch for ack receipts; this one has both receipts and
// batch-index acks. It decides nothing: it writes one line per event, and scenario.py judges.
//
//	R sub consumer epoch ms key n sha256 id  a message was received
//	A sub epoch ms key n id                  its ack was receipted
//	E sub epoch ms text                      an ack failed
//
// Standard input drives it: `epoch N` after each kill, `recreate` to close all consumers and open new ones, `status` to get
// the counts, `stop`. Receive loops never wait for acks: each ack has a goroutine of its own.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	plog "github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"
)

type subscription struct {
	name      string
	kind      pulsar.SubscriptionType
	consumers int
	mutex     sync.Mutex
	seen      map[string]struct{}
	receipted map[string]struct{}
}

var (
	epoch    atomic.Int64
	out      *bufio.Writer
	outMutex sync.Mutex
)

func line(format string, args ...any) {
	outMutex.Lock()
	defer outMutex.Unlock()
	fmt.Fprintf(out, format+"\n", args...)
}

func fail(why error) {
	fmt.Fprintln(os.Stderr, "scenario consumer:", why)
	os.Exit(1)
}

func main() {
	url := flag.String("url", "", "service URL")
	topic := flag.String("topic", "", "topic")
	log := flag.String("log", "", "event log")
	only := flag.String("only", "", "subscriptions, comma-separated; all when empty")
	flag.Parse()
	file, err := os.OpenFile(*log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		fail(err)
	}
	out = bufio.NewWriterSize(file, 1<<20)
	logger := logrus.New()
	logger.SetLevel(logrus.FatalLevel)
	client, err := pulsar.NewClient(pulsar.ClientOptions{
		URL: *url, Logger: plog.NewLoggerWithLogrus(logger), OperationTimeout: 10 * time.Second, ConnectionTimeout: 2 * time.Second,
		KeepAliveInterval: 5 * time.Second,
	})
	if err != nil {
		fail(err)
	}
	subs := []*subscription{
		{name: "exclusive", kind: pulsar.Exclusive, consumers: 1},
		{name: "failover", kind: pulsar.Failover, consumers: 2},
		{name: "shared", kind: pulsar.Shared, consumers: 3},
		{name: "key_shared", kind: pulsar.KeyShared, consumers: 3},
	}
	if *only != "" {
		chosen := subs[:0]
		for _, sub := range subs {
			if strings.Contains(","+*only+",", ","+sub.name+",") {
				chosen = append(chosen, sub)
			}
		}
		subs = chosen
	}
	for _, sub := range subs {
		sub.seen, sub.receipted = map[string]struct{}{}, map[string]struct{}{}
	}
	stop := open(client, *topic, subs)
	fmt.Println("ready")
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		var n int64
		switch text := commands.Text(); {
		case text == "status":
			parts := []string{"status"}
			for _, sub := range subs {
				sub.mutex.Lock()
				parts = append(parts, fmt.Sprintf("%s=%d/%d", sub.name, len(sub.receipted), len(sub.seen)))
				sub.mutex.Unlock()
			}
			fmt.Println(strings.Join(parts, " "))
		case text == "recreate":
			stop()
			stop = open(client, *topic, subs)
			fmt.Println("recreated")
		case text == "stop":
			stop()
			outMutex.Lock()
			if err := out.Flush(); err != nil {
				fail(err)
			}
			fmt.Println("stopped")
			os.Exit(0)
		default:
			if _, err := fmt.Sscanf(text, "epoch %d", &n); err != nil {
				fail(fmt.Errorf("unknown command %q", text))
			}
			epoch.Store(n)
			fmt.Println("epoch")
		}
	}
}

// open subscribes everything, trying for a minute, since the server may be just starting. The function it answers closes all.
func open(client pulsar.Client, topic string, subs []*subscription) func() {
	stopping, cancel := context.WithCancel(context.Background())
	var consumers []pulsar.Consumer
	var loops sync.WaitGroup
	for _, sub := range subs {
		for i := range sub.consumers {
			name := fmt.Sprintf("%s-%d", sub.name, i)
			options := pulsar.ConsumerOptions{
				Topic: topic, SubscriptionName: sub.name, Type: sub.kind, Name: name,
				SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest,
				AckWithResponse:             true, EnableBatchIndexAcknowledgment: true,
				ReceiverQueueSize: 500, NackRedeliveryDelay: time.Second,
			}
			deadline := time.Now().Add(time.Minute)
			consumer, err := client.Subscribe(options)
			for err != nil && time.Now().Before(deadline) {
				time.Sleep(100 * time.Millisecond)
				consumer, err = client.Subscribe(options)
			}
			if err != nil {
				fail(fmt.Errorf("subscribe %s: %w", name, err))
			}
			consumers = append(consumers, consumer)
			loops.Add(1)
			go func() {
				defer loops.Done()
				receive(stopping, consumer, sub, name)
			}()
		}
	}
	return func() {
		cancel()
		loops.Wait()
		for _, consumer := range consumers {
			consumer.Close()
		}
	}
}

func receive(stopping context.Context, consumer pulsar.Consumer, sub *subscription, name string) {
	for {
		message, err := consumer.Receive(stopping)
		if err != nil {
			return
		}
		n := message.Properties()["n"]
		sum := sha256.Sum256(message.Payload())
		// The lock makes the order of the lines the order of arrival.
		sub.mutex.Lock()
		sub.seen[message.Key()+"\t"+n] = struct{}{}
		line("R\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s", sub.name, name, epoch.Load(), time.Now().UnixMilli(), message.Key(), n,
			hex.EncodeToString(sum[:8]), identity(message))
		sub.mutex.Unlock()
		go acknowledge(consumer, sub, message, n)
	}
}

func acknowledge(consumer pulsar.Consumer, sub *subscription, message pulsar.Message, n string) {
	if err := consumer.Ack(message); err != nil {
		line("E\t%s\t%d\t%d\t%s", sub.name, epoch.Load(), time.Now().UnixMilli(), strings.ReplaceAll(err.Error(), "\n", " "))
		// Without a receipt the message may or may not come again; asking for it again keeps the run from stalling.
		consumer.Nack(message)
		return
	}
	sub.mutex.Lock()
	defer sub.mutex.Unlock()
	line("A\t%s\t%d\t%d\t%s\t%s\t%s", sub.name, epoch.Load(), time.Now().UnixMilli(), message.Key(), n, identity(message))
	sub.receipted[message.Key()+"\t"+n] = struct{}{}
}

// identity tells two stored copies of a record apart, which a producer's retry after a crash may leave.
func identity(message pulsar.Message) string {
	id := message.ID()
	return fmt.Sprintf("%d:%d:%d:%d", id.LedgerID(), id.EntryID(), id.PartitionIdx(), id.BatchIdx())
}
