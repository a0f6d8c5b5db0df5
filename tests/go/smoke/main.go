// Smoke test of the official Go client: produce and consume, a partitioned topic, a reader, seek.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	plog "github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"
)

var (
	url  = os.Args[1]
	rest = os.Args[2]
	ctx  = context.Background()
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func equal[T comparable](what string, got, want []T) {
	if fmt.Sprint(got) != fmt.Sprint(want) {
		panic(fmt.Sprintf("%s: got %v, want %v", what, got, want))
	}
}

func publish(client pulsar.Client, topic string, count int) []pulsar.MessageID {
	producer, err := client.CreateProducer(pulsar.ProducerOptions{Topic: topic})
	check(err)
	defer producer.Close()
	var ids []pulsar.MessageID
	for n := range count {
		id, err := producer.Send(ctx, &pulsar.ProducerMessage{Payload: fmt.Append(nil, n), Key: fmt.Sprint("k", n)})
		check(err)
		ids = append(ids, id)
	}
	return ids
}

func receive(consumer pulsar.Consumer, count int) []string {
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var texts []string
	for range count {
		message, err := consumer.Receive(limit)
		check(err)
		check(consumer.Ack(message))
		texts = append(texts, string(message.Payload()))
	}
	return texts
}

func numbers(from, to int) (texts []string) {
	for n := from; n < to; n++ {
		texts = append(texts, fmt.Sprint(n))
	}
	return
}

func main() {
	logger := logrus.New()
	logger.SetLevel(logrus.ErrorLevel)
	client, err := pulsar.NewClient(pulsar.ClientOptions{URL: url, Logger: plog.NewLoggerWithLogrus(logger)})
	check(err)
	defer client.Close()
	stamp := time.Now().UnixNano()
	topic := fmt.Sprintf("persistent://public/default/go-%d", stamp)
	consumer, err := client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "s", AckWithResponse: true})
	check(err)
	ids := publish(client, topic, 10)
	equal("consume", receive(consumer, 10), numbers(0, 10))
	check(consumer.Seek(ids[4]))
	equal("seek", receive(consumer, 5), numbers(5, 10))
	consumer.Close()
	fmt.Println("ok go produce, consume, seek")

	reader, err := client.CreateReader(pulsar.ReaderOptions{Topic: topic, StartMessageID: pulsar.EarliestMessageID()})
	check(err)
	var read []string
	for reader.HasNext() {
		message, err := reader.Next(ctx)
		check(err)
		read = append(read, string(message.Payload()))
	}
	reader.Close()
	equal("reader", read, numbers(0, 10))
	fmt.Println("ok go reader")

	path := fmt.Sprintf("%s/admin/v2/persistent/public/default/gop-%d/partitions", rest, stamp)
	request, err := http.NewRequest(http.MethodPut, path, strings.NewReader("3"))
	check(err)
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	check(err)
	answer.Body.Close()
	topic = fmt.Sprintf("persistent://public/default/gop-%d", stamp)
	partitions, err := client.TopicPartitions(topic)
	check(err)
	equal("partitions", []int{len(partitions)}, []int{3})
	consumer, err = client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "s", Type: pulsar.KeyShared})
	check(err)
	publish(client, topic, 30)
	seen := map[string]bool{}
	for _, text := range receive(consumer, 30) {
		seen[text] = true
	}
	equal("partitioned", []int{len(seen)}, []int{30})
	consumer.Close()
	fmt.Println("ok go partitions")
}
